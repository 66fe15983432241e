/* First program of a guest: modules, disks, mounts, then the agent (or systemd).
 *
 * Freestanding: no C library, only system calls, so that any C compiler for x86-64 makes a static program of a few
 * kilobytes (tcc -nostdlib -static). What fails is said on the console, then the machine is switched off, so that the
 * host sees a start that failed and not one that hangs.
 *
 * Disks are known by their serial (root, private, volatile), which the host sets. On the kernel's command line:
 *   casemate.init=lean      python3 with the agent is process 1 (default)
 *   casemate.init=systemd   systemd with casemate.target
 *   casemate.init=probe     say hello and switch off: does this host's virtualisation work at all?
 *   casemate.init=/PATH     that program
 *   casemate.private=later  the agent mounts the private disk (agent/private_disk.py): this guest becomes a warm image
 */

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

/* System call numbers and constants of x86-64 Linux (asm/unistd_64.h, linux/fs.h, linux/mount.h, linux/reboot.h). */
enum {
    SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_ioctl = 16, SYS_pwrite = 18, SYS_nanosleep = 35,
    SYS_socket = 41, SYS_execve = 59, SYS_chdir = 80, SYS_mkdir = 83, SYS_unlink = 87, SYS_symlink = 88,
    SYS_chown = 92, SYS_statfs = 137, SYS_chroot = 161, SYS_sync = 162, SYS_mount = 165, SYS_swapon = 167,
    SYS_reboot = 169, SYS_finit_module = 313,
};
enum { O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CLOEXEC = 02000000 };
enum { MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_NOATIME = 1024, MS_BIND = 4096, MS_MOVE = 8192 };
enum { EEXIST = 17, EACCES = 13, EROFS = 30, ENOENT = 2 };
#define BLKGETSIZE64 0x80081272UL
#define EXT4_IOC_RESIZE_FS 0x40086610UL
#define SIOCSIFFLAGS 0x8914UL
#define POWER_OFF 0x4321fedcUL

/* A system call; the result is negative for an error. In assembly, as not every compiler can bind r10 and r8. */
long sys(long number, long a, long b, long c, long d, long e);
__asm__(".globl sys\n"
        "sys:\n"
        "  mov %rdi, %rax\n  mov %rsi, %rdi\n  mov %rdx, %rsi\n  mov %rcx, %rdx\n  mov %r8, %r10\n  mov %r9, %r8\n"
        "  syscall\n"
        "  ret\n");

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

static void say(const char *text) { sys(SYS_write, 2, P(text), length(text), 0, 0); }

static void say_number(long number)
{
    char digits[24];
    int at = 23;
    digits[at] = 0;
    do
        digits[--at] = '0' + number % 10;
    while (number /= 10);
    say(digits + at);
}

static void power_off(void)
{
    sys(SYS_sync, 0, 0, 0, 0, 0);
    sys(SYS_reboot, 0xfee1dead, 672274793, POWER_OFF, 0, 0);
    for (;;)
        ;
}

static void complain(const char *what, const char *which, long error)
{
    say("casemate: ");
    say(what);
    say(" ");
    say(which);
    say(": error ");
    say_number(-error);
    say("\n");
}

static void fail(const char *what, const char *which, long error)
{
    complain(what, which, error);
    say("casemate: this guest cannot start\n");
    power_off();
}

static void mount_or_fail(const char *source, const char *target, const char *type, u64 flags, const char *data)
{
    long error = sys(SYS_mount, P(source), P(target), P(type), flags, P(data));
    if (error < 0)
        fail("cannot mount", target, error);
}

/* 1: made, 0: was there. */
static int make_directory(const char *path, int mode)
{
    long error = sys(SYS_mkdir, P(path), mode, 0, 0, 0);
    if (error < 0 && error != -EEXIST && error != -EROFS)
        fail("cannot make directory", path, error);
    return error == 0;
}

/* A whole small file as text; how long it is, 0 when it cannot be read. */
static int read_text(const char *path, char *buffer, int size)
{
    long fd = sys(SYS_open, P(path), O_RDONLY | O_CLOEXEC, 0, 0, 0), n, total = 0;
    if (fd < 0)
        return 0;
    while (total < size - 1 && (n = sys(SYS_read, fd, P(buffer + total), size - 1 - total, 0, 0)) > 0)
        total += n;
    sys(SYS_close, fd, 0, 0, 0, 0);
    buffer[total] = 0;
    return total;
}

/* The modules named in /modules/order, in that order. */
static void load_modules(void)
{
    static char order[4096];
    char path[128] = "/modules/";
    int size = read_text("/modules/order", order, sizeof order), at = 0;
    while (at < size) {
        int n = 9;
        while (at < size && order[at] != '\n' && n < 127)
            path[n++] = order[at++];
        path[n] = 0;
        at++;
        long fd = sys(SYS_open, P(path), O_RDONLY | O_CLOEXEC, 0, 0, 0);
        long error = fd < 0 ? fd : sys(SYS_finit_module, fd, P(""), 0, 0, 0);
        if (error < 0 && error != -EEXIST)
            fail("cannot load", path, error);
        sys(SYS_close, fd, 0, 0, 0, 0);
        sys(SYS_unlink, P(path), 0, 0, 0, 0); /* the initramfs is memory of the guest */
    }
}

/* Device nodes by serial; empty where there is no such disk. */
static char root_disk[16], private_disk[16], volatile_disk[16];

static void copy(char *to, const char *from)
{
    while ((*to++ = *from++))
        ;
}

static void find_disks(void)
{
    char path[] = "/sys/block/vda/serial", node[] = "/dev/vda", serial[32];
    for (int i = 0; i < 26; i++) {
        path[13] = node[7] = 'a' + i;
        if (!read_text(path, serial, sizeof serial))
            continue;
        for (char *c = serial; *c; c++)
            if (*c == '\n')
                *c = 0;
        if (same(serial, "root"))
            copy(root_disk, node);
        else if (same(serial, "private"))
            copy(private_disk, node);
        else if (same(serial, "volatile"))
            copy(volatile_disk, node);
    }
}

static void wait_for_root(void)
{
    u64 pause[2] = {0, 20000000};
    for (int i = 0; i < 500; i++) {
        find_disks();
        if (root_disk[0])
            return;
        sys(SYS_nanosleep, P(pause), 0, 0, 0, 0);
    }
    fail("no disk with serial", "root", -ENOENT);
}

static u64 device_size(const char *node)
{
    u64 size = 0;
    long fd = sys(SYS_open, P(node), O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (fd >= 0) {
        sys(SYS_ioctl, fd, BLKGETSIZE64, P(&size), 0, 0);
        sys(SYS_close, fd, 0, 0, 0, 0);
    }
    return size;
}

/* Mount an ext4 disk; where the disk has become larger than its file system, let the kernel grow it. */
static void mount_disk(const char *node, const char *target)
{
    const char *options = "noinit_itable";
    long error = sys(SYS_mount, P(node), P(target), P("ext4"), MS_NOATIME, P(options));
    if (error == -EACCES || error == -EROFS) {
        mount_or_fail(node, target, "ext4", MS_NOATIME | MS_RDONLY, options);
        return;
    }
    if (error < 0)
        fail("cannot mount", node, error);
    static u64 state[16]; /* struct statfs: f_type, f_bsize, f_blocks, ... (without the file system's own overhead) */
    u64 size = device_size(node);
    if (sys(SYS_statfs, P(target), P(state), 0, 0, 0) < 0 || size == 0)
        return;
    u64 block = state[1], used = state[2] * block;
    if (size > used + used / 16 + (256UL << 20)) {
        u64 blocks = size / block;
        long fd = sys(SYS_open, P(target), O_RDONLY | O_CLOEXEC, 0, 0, 0);
        error = fd < 0 ? fd : sys(SYS_ioctl, fd, EXT4_IOC_RESIZE_FS, P(&blocks), 0, 0);
        if (error < 0)
            complain("cannot grow", node, error);
        sys(SYS_close, fd, 0, 0, 0, 0);
    }
}

static void mount_private(void)
{
    make_directory("/root/rw", 0755);
    mount_disk(private_disk, "/root/rw");
    make_directory("/root/rw/home", 0755);
    make_directory("/root/rw/config", 0755);
    if (make_directory("/root/rw/home/user", 0700))
        sys(SYS_chown, P("/root/rw/home/user"), 1000, 1000, 0, 0);
    mount_or_fail("/root/rw/home", "/root/home", 0, MS_BIND, 0);
}

/* Up to 1 GiB of the volatile disk as swap space: a header (mm/swapfile.c: union swap_header), then swapon. */
static void swap_on_volatile(void)
{
    static u8 page[4096];
    u64 pages = device_size(volatile_disk) / 4096;
    if (pages < 1024)
        return;
    if (pages > 262144)
        pages = 262144;
    *(u32 *)(page + 1024) = 1;
    *(u32 *)(page + 1028) = pages - 1;
    for (int i = 0; i < 10; i++)
        page[4086 + i] = "SWAPSPACE2"[i];
    long fd = sys(SYS_open, P(volatile_disk), O_WRONLY | O_CLOEXEC, 0, 0, 0);
    long error = fd < 0 ? fd : sys(SYS_pwrite, fd, P(page), 4096, 0, 0);
    sys(SYS_close, fd, 0, 0, 0, 0);
    if (error >= 0)
        error = sys(SYS_swapon, P(volatile_disk), 0, 0, 0, 0);
    if (error < 0)
        complain("no swap space on", volatile_disk, error);
}

static void loopback_up(void)
{
    struct { char name[16]; u16 flags; char rest[22]; } request = {"lo", 0x41, ""}; /* IFF_UP | IFF_RUNNING */
    long fd = sys(SYS_socket, 2, 2 | O_CLOEXEC, 0, 0, 0);
    if (fd >= 0) {
        sys(SYS_ioctl, fd, SIOCSIFFLAGS, P(&request), 0, 0);
        sys(SYS_close, fd, 0, 0, 0, 0);
    }
}

/* The value of an option on the kernel's command line. What it points to stands until the next call. */
static const char *option(const char *key, const char *otherwise)
{
    static char line[4096];
    const char *found = otherwise;
    int size = read_text("/proc/cmdline", line, sizeof line), start = 0;
    for (int i = 0; i <= size; i++) {
        if (line[i] && line[i] != ' ' && line[i] != '\n')
            continue;
        line[i] = 0;
        int n = 0;
        while (key[n] && line[start + n] == key[n])
            n++;
        if (!key[n])
            found = line + start + n;
        start = i + 1;
    }
    return found;
}

static void main_in_guest(void)
{
    mount_or_fail("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    int later = same(option("casemate.private=", "now"), "later");
    const char *init = option("casemate.init=", "lean");
    if (same(init, "probe")) {
        say("casemate: a guest runs here\n");
        power_off();
    }
    mount_or_fail("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    mount_or_fail("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    load_modules();
    wait_for_root();
    mount_disk(root_disk, "/root");
    if (private_disk[0] && !later)
        mount_private();
    mount_or_fail("/proc", "/root/proc", 0, MS_MOVE, 0);
    mount_or_fail("/sys", "/root/sys", 0, MS_MOVE, 0);
    mount_or_fail("/dev", "/root/dev", 0, MS_MOVE, 0);
    mount_or_fail("run", "/root/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%");
    mount_or_fail("tmp", "/root/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    sys(SYS_chdir, P("/root"), 0, 0, 0, 0);
    mount_or_fail(".", "/", 0, MS_MOVE, 0);
    sys(SYS_chroot, P("."), 0, 0, 0, 0);
    sys(SYS_chdir, P("/"), 0, 0, 0, 0);
    make_directory("/dev/pts", 0755);
    make_directory("/dev/shm", 01777);
    mount_or_fail("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount_or_fail("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    sys(SYS_symlink, P("/proc/self/fd"), P("/dev/fd"), 0, 0, 0);
    sys(SYS_symlink, P("/proc/self/fd/0"), P("/dev/stdin"), 0, 0, 0);
    sys(SYS_symlink, P("/proc/self/fd/1"), P("/dev/stdout"), 0, 0, 0);
    sys(SYS_symlink, P("/proc/self/fd/2"), P("/dev/stderr"), 0, 0, 0);
    if (volatile_disk[0])
        swap_on_volatile();
    loopback_up();

    const char *lean[] = {"/usr/bin/python3", "-I", "-S", "/usr/lib/casemate/agent.pyz", "agent", 0};
    const char *systemd[] = {"/lib/systemd/systemd", "--unit=casemate.target", 0};
    const char *other[] = {init, 0};
    const char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
                                 "LANG=C.UTF-8", "TERM=linux", 0};
    const char **argv = same(init, "systemd") ? systemd : init[0] == '/' ? other : lean;
    fail("cannot run", argv[0], sys(SYS_execve, P(argv[0]), P(argv), P(environment), 0, 0));
}

__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  and $-16, %rsp\n  call start_c\n");

void start_c(void)
{
    main_in_guest();
    power_off();
}
