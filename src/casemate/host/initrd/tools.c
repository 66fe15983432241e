/* The tools of a guest that are called often, as one small static program: qrexec-client-vm and qubesdb-*.
 *
 * Under emulation a Python program takes 70 ms to start and 10 MiB while it waits; this one takes 5 ms and 100 KiB. It
 * knows the plain case of each tool and speaks to the agent's sockets as the Python tools do. Whatever else is wanted
 * (options it does not know, a program to join the call to, vchan, an error to be put into words) it leaves to the
 * Python tool of the same name, which it becomes before anything was read or printed. Which tool: by the name in
 * argv[0]. Freestanding like init.c: no C library.
 *
 * One file although it is long: it is compiled by one command without a linker script, and both kinds of tool share the
 * system calls, the reading of exact counts and the fall back to Python. The two halves stand one after the other.
 *
 * Formats: wire/qrexec.py (messages) and wire/qdb.py (records).
 */

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

/* x86-64 Linux: asm/unistd_64.h, asm-generic/fcntl.h, linux/socket.h, asm-generic/poll.h */
enum {
    SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_fstat = 5, SYS_poll = 7, SYS_rt_sigprocmask = 14,
    SYS_ioctl = 16, SYS_socket = 41, SYS_connect = 42, SYS_sendto = 44, SYS_execve = 59, SYS_exit = 60,
};
enum { O_RDONLY = 0, O_WRONLY = 1, O_NOCTTY = 0400, O_NONBLOCK = 04000, O_CLOEXEC = 02000000 };
enum { AF_UNIX = 1, SOCK_STREAM = 1, SOCK_CLOEXEC = 02000000, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16, POLLNVAL = 32 };
enum { EINTR = 4, EAGAIN = 11, SIGPIPE = 13, SIG_BLOCK = 0, TCGETS = 0x5401 };
enum { S_IFMT = 0170000, S_IFIFO = 0010000, S_IFCHR = 0020000, S_IFREG = 0100000, S_IFSOCK = 0140000 };

enum { DATA_STDIN = 0x190, DATA_STDOUT = 0x191, DATA_STDERR = 0x192, DATA_EXIT_CODE = 0x193 };
enum { SERVICE_CONNECT = 0x202, SERVICE_REFUSED = 0x203, TRIGGER_SERVICE4 = 0x213 };
enum { HEADER = 8, CHUNK = 65536, FIELD = 64, IDENT = 32, FIXED = FIELD + FIELD + IDENT, MAX_CALL = 512 };
enum { EXIT_FAILED = 125, EXIT_REFUSED = 126, EXIT_BROKEN_PIPE = 141, EXIT_VANISHED = 255 };
enum { LOST_LIMIT = 65536 }; /* calls/caller.py */
enum { ATOMIC = 4096 };      /* PIPE_BUF: after POLLOUT a pipe takes so much without blocking */

enum { DB_READ = 0, DB_WRITE = 1, DB_MULTIREAD = 2, DB_LIST = 3, DB_RM = 4, DB_OK = 7, DB_NOENT = 8 };
enum { DB_RESP_READ = 10, DB_RESP_MULTIREAD = 11, DB_RESP_LIST = 12 };
enum { RECORD = 72, MAX_PATH = 63, MAX_DATA = 3071, NOT_FOUND = 2 };

#define PYTHON "/usr/bin/python3"
#define SCRIPT "/usr/lib/casemate/tool.py"

/* A system call; the result is negative for an error. In assembly, as not every compiler can bind r10 and r8. */
long sys(long number, long a, long b, long c, long d, long e);
__asm__(".globl sys\n"
        "sys:\n"
        "  mov %rdi, %rax\n  mov %rsi, %rdi\n  mov %rdx, %rsi\n  mov %rcx, %rdx\n  mov %r8, %r10\n  mov %r9, %r8\n"
        "  xor %r9, %r9\n" /* the sixth argument of sendto: length of an address, of which there is none */
        "  syscall\n"
        "  ret\n");

__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call tools\n"
        "  hlt\n");

#define P(pointer) ((long)(pointer))

/* Compilers call these two by themselves. */
void *memset(void *to, int value, u64 count)
{
    for (u64 i = 0; i < count; i++)
        ((u8 *)to)[i] = value;
    return to;
}

void *memcpy(void *to, const void *from, u64 count)
{
    for (u64 i = 0; i < count; i++)
        ((u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}

static int length(const char *text)
{
    int n = 0;
    while (text[n])
        n++;
    return n;
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static const char *after(const char *text, const char *prefix) /* what follows the prefix, or 0 */
{
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

static char **environment, **arguments;
static const char *name;

static const char *variable(const char *what)
{
    for (char **at = environment; *at; at++) {
        const char *value = after(*at, what);
        if (value && *value == '=')
            return value + 1;
    }
    return 0;
}

static void leave(int status)
{
    for (;;)
        sys(SYS_exit, status, 0, 0, 0, 0);
}

/* Waits while a descriptor blocks, so for the few bytes of a message only. */
static void say(const char *text) { sys(SYS_write, 2, P(text), length(text), 0, 0); }

static void fail(int status, const char *why)
{
    say(name);
    say(": ");
    say(why);
    say("\n");
    leave(status);
}

/* Become the Python tool, with all that was on the command line. */
static void become_python(void)
{
    static char *words[4096];
    int count = 0;
    words[count++] = "python3";
    words[count++] = "-IS";
    words[count++] = SCRIPT;
    words[count++] = (char *)name;
    for (char **at = arguments; *at; at++) {
        if (count >= 4095)
            fail(EXIT_FAILED, "too many arguments");
        words[count++] = *at;
    }
    words[count] = 0;
    sys(SYS_execve, P(PYTHON), P(words), P(environment), 0, 0);
    fail(EXIT_FAILED, "cannot start " PYTHON);
}

/* Connected socket; the Python tool puts into words why there is none. */
static int connected(const char *path)
{
    struct { u16 family; char path[108]; } address;
    int size = length(path), sock;
    if (size >= 108)
        become_python();
    memset(&address, 0, sizeof address);
    address.family = AF_UNIX;
    memcpy(address.path, path, size);
    sock = sys(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0);
    if (sock < 0 || sys(SYS_connect, sock, P(&address), sizeof address, 0, 0) < 0)
        become_python();
    return sock;
}

static int send_all(int sock, const u8 *data, long size)
{
    while (size) {
        long count = sys(SYS_sendto, sock, P(data), size, MSG_NOSIGNAL, 0);
        if (count == -EINTR)
            continue;
        if (count < 0)
            return 0;
        data += count;
        size -= count;
    }
    return 1;
}

static int read_all(int fd, u8 *data, long size)
{
    while (size) {
        long count = sys(SYS_read, fd, P(data), size, 0, 0);
        if (count == -EINTR)
            continue;
        if (count <= 0)
            return 0;
        data += count;
        size -= count;
    }
    return 1;
}

static void put32(u8 *at, u32 value) { memcpy(at, &value, 4); }

static u32 get32(const u8 *at)
{
    u32 value;
    memcpy(&value, at, 4);
    return value;
}

/* ---- qrexec-client-vm: the caller's end of a call, as calls/caller.py ---- */

struct output {
    int fd;      /* to write to */
    int atomic;  /* it may block: write a pipe's share after POLLOUT only */
    int sock;    /* a socket: sent to without blocking */
    int broken;  /* nobody reads it */
    int visible; /* make what could be an escape sequence harmless */
    u64 lost;
};

static u8 input[HEADER + CHUNK], received[CHUNK];

/* For writing without blocking, and without changing the file that we share with others: one of our own if possible. */
static void prepare(struct output *out, int fd, int wanted)
{
    struct { u64 device, inode, links; u32 mode, rest[29]; } status;
    char path[] = "/proc/self/fd/X";
    u8 terminal[64];
    out->fd = fd;
    out->visible = wanted < 0 ? sys(SYS_ioctl, fd, TCGETS, P(terminal), 0, 0) == 0 : wanted;
    if (sys(SYS_fstat, fd, P(&status), 0, 0, 0) < 0) {
        out->broken = 1;
        return;
    }
    u32 kind = status.mode & S_IFMT;
    if (kind == S_IFIFO || kind == S_IFCHR) {
        path[14] = '0' + fd;
        long own = sys(SYS_open, P(path), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0, 0, 0);
        if (own >= 0)
            out->fd = own;
        else
            out->atomic = 1;
    }
    out->sock = kind == S_IFSOCK;
}

/* Bytes that were taken of so many; those that nobody reads count as taken. */
static long put(struct output *out, u8 *data, long size)
{
    long count;
    if (out->broken) {
        out->lost += size;
        return size;
    }
    if (out->atomic && size > ATOMIC)
        size = ATOMIC;
    if (out->visible)
        for (long i = 0; i < size; i++)
            if (!((data[i] >= 0x20 && data[i] <= 0x7e) || (data[i] >= 7 && data[i] <= 10) || data[i] == 13))
                data[i] = '_';
    if (out->sock)
        count = sys(SYS_sendto, out->fd, P(data), size, MSG_DONTWAIT | MSG_NOSIGNAL, 0);
    else
        count = sys(SYS_write, out->fd, P(data), size, 0, 0);
    if (count == -EAGAIN || count == -EINTR)
        return 0;
    if (count < 0) {
        out->broken = 1;
        return put(out, data, size);
    }
    return count;
}

struct watched { int fd; short wanted, ready; };

static void run_call(int sock, struct output *stdout, struct output *stderr)
{
    struct watched files[3];
    u8 head[HEADER];
    int head_size = 0, input_open = 1;
    long send_at = 0, send_end = 0, at = 0, end = 0, left = 0;
    u32 kind = 0;
    for (;;) {
        struct output *out = kind == DATA_STDERR ? stderr : stdout;
        int writing = left && at < end && kind != DATA_EXIT_CODE && !out->broken;
        files[0].wanted = (at == end ? POLLIN : 0) | (send_at < send_end ? POLLOUT : 0);
        files[0].fd = files[0].wanted ? sock : -1; /* or a hang-up would be told of again and again meanwhile */
        files[1].fd = input_open && send_at == send_end ? 0 : -1;
        files[1].wanted = POLLIN;
        files[2].fd = writing ? out->fd : -1;
        files[2].wanted = POLLOUT;
        for (int i = 0; i < 3; i++)
            files[i].ready = 0;
        if (stdout->lost > LOST_LIMIT && send_at == send_end) {
            /* Nobody reads the output; end the call unless there is input to be carried over first. */
            if (!input_open || sys(SYS_poll, P(files + 1), 1, 0, 0, 0) == 0)
                leave(EXIT_BROKEN_PIPE);
            files[1].ready = 0;
        }
        if (at == end || writing)
            if (sys(SYS_poll, P(files), 3, -1, 0, 0) < 0)
                continue;
        if (files[0].ready & POLLOUT) {
            long count = sys(SYS_sendto, sock, P(input + send_at), send_end - send_at, MSG_DONTWAIT | MSG_NOSIGNAL, 0);
            if (count > 0)
                send_at += count;
            else if (count != -EAGAIN && count != -EINTR)
                input_open = 0, send_at = send_end; /* the service takes no more; what it says is still to be read */
        }
        if (files[1].ready) {
            long count = sys(SYS_read, 0, P(input + HEADER), CHUNK, 0, 0);
            if (count != -EAGAIN && count != -EINTR) {
                if (count <= 0)
                    count = 0, input_open = 0; /* the message of no bytes is the end of the input */
                put32(input, DATA_STDIN);
                put32(input + 4, count);
                send_at = 0;
                send_end = HEADER + count;
            }
        }
        if (at == end && files[0].ready & ~POLLOUT) {
            long count = sys(SYS_read, sock, P(received), CHUNK, 0, 0);
            if (count == -EAGAIN || count == -EINTR)
                continue;
            if (count <= 0)
                fail(EXIT_VANISHED, "The other end went away before the call had ended");
            at = 0;
            end = count;
        }
        /* Take what is in the buffer, as far as the outputs do. */
        while (at < end) {
            if (!left) {
                while (head_size < HEADER && at < end)
                    head[head_size++] = received[at++];
                if (head_size < HEADER)
                    break;
                head_size = 0;
                kind = get32(head);
                left = get32(head + 4);
                if (kind < DATA_STDOUT || kind > DATA_EXIT_CODE || left > CHUNK || (kind == DATA_EXIT_CODE && left != 4))
                    fail(EXIT_FAILED, "The other end broke the protocol");
                if (!left && kind == DATA_STDOUT && !stdout->broken) {
                    /* Its reader sees the end now, not at the end of the call. */
                    stdout->broken = 1;
                    if (stdout->fd != 1)
                        sys(SYS_close, stdout->fd, 0, 0, 0, 0);
                    sys(SYS_close, 1, 0, 0, 0, 0);
                }
            } else if (kind == DATA_EXIT_CODE) {
                head[head_size++] = received[at++];
                if (!--left) {
                    u32 code = get32(head);
                    leave(code <= 255 ? code : EXIT_VANISHED);
                }
            } else {
                out = kind == DATA_STDERR ? stderr : stdout;
                if (out->atomic && !out->broken && !(writing && files[2].ready))
                    break; /* it may block */
                long count = put(out, received + at, left < end - at ? left : end - at);
                files[2].ready = 0;
                if (!count)
                    break;
                at += count;
                left -= count;
            }
        }
    }
}

static void qrexec_client_vm(char **words)
{
    static u8 request[HEADER + FIXED + MAX_CALL], answer[HEADER + HEADER + IDENT];
    struct output out = {1}, err = {2};
    int visible_out = -1, visible_err = -1, target, call;
    const char *path = 0, *value;
    u64 pipes = 1UL << (SIGPIPE - 1);
    if (variable("VCHAN_DOMAIN"))
        become_python();
    for (; *words && **words == '-'; words++) {
        if (same(*words, "-t") || same(*words, "--filter-escape-chars-stdout"))
            visible_out = 1;
        else if (same(*words, "-T") || same(*words, "--filter-escape-chars-stderr"))
            visible_err = 1;
        else if (same(*words, "--no-filter-escape-chars-stdout"))
            visible_out = 0;
        else if (same(*words, "--no-filter-escape-chars-stderr"))
            visible_err = 0;
        else if ((value = after(*words, "--agent-socket=")))
            path = value;
        else
            become_python();
    }
    if (!words[0] || !words[1] || words[2])
        become_python();
    target = length(words[0]);
    call = length(words[1]);
    if (target >= FIELD || !call || call >= MAX_CALL)
        become_python();
    for (int i = 0; i < 2; i++)
        for (const char *at = words[i]; *at; at++)
            if (*at & 0x80)
                become_python();
    if (!path || !*path)
        path = variable("QREXEC_AGENT_SOCKET");
    int sock = connected(path && *path ? path : "/run/qubes/qrexec-agent.sock");
    put32(request, TRIGGER_SERVICE4);
    put32(request + 4, FIXED + call + 1);
    memcpy(request + HEADER + FIELD, words[0], target);
    memcpy(request + HEADER + FIELD + FIELD, "SOCKET", 6);
    memcpy(request + HEADER + FIXED, words[1], call);
    if (!send_all(sock, request, HEADER + FIXED + call + 1) || !read_all(sock, answer, HEADER))
        fail(EXIT_FAILED, "The connection was closed before the request was answered");
    u32 kind = get32(answer), size = get32(answer + 4);
    if (!((kind == SERVICE_CONNECT && size == HEADER + IDENT) || (kind == SERVICE_REFUSED && size == IDENT)))
        fail(EXIT_FAILED, "The agent broke the protocol");
    if (!read_all(sock, answer + HEADER, size))
        fail(EXIT_FAILED, "The connection was closed before the request was answered");
    if (kind == SERVICE_REFUSED) {
        say("Request refused\n");
        leave(EXIT_REFUSED);
    }
    sys(SYS_rt_sigprocmask, SIG_BLOCK, P(&pipes), 0, sizeof pipes, 0); /* writing to nobody is an error, no death */
    prepare(&out, 1, visible_out);
    prepare(&err, 2, visible_err);
    run_call(sock, &out, &err);
}

/* ---- qubesdb-*: one request, as agent/qubesdb_tool.py without options ---- */

static u8 record[RECORD + MAX_DATA + 1], text[CHUNK];
static int text_size;

static void flush(void)
{
    u8 *at = text;
    while (text_size) {
        long count = sys(SYS_write, 1, P(at), text_size, 0, 0);
        if (count == -EINTR)
            continue;
        if (count < 0)
            leave(1);
        at += count;
        text_size -= count;
    }
}

static void print(const u8 *data, int size, int escaped)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < size; i++) {
        if (text_size > CHUNK - 4)
            flush();
        if (!escaped || (data[i] >= 0x20 && data[i] < 0x7f)) {
            text[text_size++] = data[i];
        } else {
            text[text_size++] = '\\';
            text[text_size++] = 'x';
            text[text_size++] = digits[data[i] >> 4];
            text[text_size++] = digits[data[i] & 15];
        }
    }
}

static void ask(int sock, int kind, const char *path, const char *value)
{
    int size = length(path), value_size = value ? length(value) : 0;
    if (size > MAX_PATH || value_size > MAX_DATA)
        become_python();
    memset(record, 0, RECORD);
    record[0] = kind;
    memcpy(record + 1, path, size);
    put32(record + 68, value_size);
    if (value)
        memcpy(record + RECORD, value, value_size);
    if (!send_all(sock, record, RECORD + value_size))
        become_python();
}

/* The next record: its type, its value's length; -1 when there is none. */
static int answered(int sock, int *size)
{
    if (!read_all(sock, record, RECORD))
        return -1;
    u32 found = get32(record + 68);
    record[FIELD] = 0;
    if (found > MAX_DATA || !read_all(sock, record + RECORD, found))
        return -1;
    *size = found;
    return record[0];
}

static void qubesdb(const char *what, char **words)
{
    int size, sock, kind, found = 0, listing = same(what, "list"), all = same(what, "multiread");
    const char *path = variable("QUBESDB_SOCKET"), *key = words[0];
    int pair = same(what, "write");
    if (!key || *key == '-' || (pair ? !words[1] || words[2] : !!words[1]))
        become_python();
    if (!pair && !listing && !all && !same(what, "read") && !same(what, "rm"))
        become_python();
    sock = connected(path && *path ? path : "/run/qubes/qubesdb.sock");
    if (listing || all) {
        int prefix = length(key);
        ask(sock, listing ? DB_LIST : DB_MULTIREAD, key, 0);
        while ((kind = answered(sock, &size)) == (listing ? DB_RESP_LIST : DB_RESP_MULTIREAD)) {
            int whole = length((char *)record + 1);
            if (!whole && !size) {
                if (!found && all)
                    become_python();
                flush();
                leave(0);
            }
            found = 1;
            if (prefix < whole)
                print(record + 1 + prefix, whole - prefix, 0);
            if (all) {
                print((u8 *)" = ", 3, 0);
                print(record + RECORD, size, 1);
            }
            print((u8 *)"\n", 1, 0);
        }
        if (!found)
            become_python();
        flush();
        fail(1, "The database has ended");
    }
    ask(sock, pair ? DB_WRITE : same(what, "rm") ? DB_RM : DB_READ, key, pair ? words[1] : 0);
    kind = answered(sock, &size);
    if (kind == DB_OK)
        leave(0);
    if (kind == DB_RESP_READ) {
        print(record + RECORD, size, 1);
        print((u8 *)"\n", 1, 0);
        flush();
        leave(0);
    }
    if (kind == DB_NOENT && same(what, "read")) {
        say("Failed to read '");
        say(key);
        say("'\n");
        leave(NOT_FOUND);
    }
    become_python();
}

void tools(long *stack)
{
    long count = *stack;
    char **argv = (char **)(stack + 1);
    const char *what;
    environment = argv + count + 1;
    if (count < 1)
        leave(EXIT_FAILED);
    arguments = argv + 1;
    name = argv[0];
    for (const char *at = name; *at; at++)
        if (*at == '/')
            name = at + 1;
    if (same(name, "qrexec-client-vm"))
        qrexec_client_vm(arguments);
    if ((what = after(name, "qubesdb-")))
        qubesdb(what, arguments);
    become_python();
}
