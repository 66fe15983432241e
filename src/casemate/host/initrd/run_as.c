/* Becomes a user and then a program: run-as UID GID GROUP,GROUP,... HOME PROGRAM [ARGUMENT ...]
 *
 * The agent starts programs with posix_spawn, which is many times faster than a fork of a Python process and cannot
 * change users; this does it between. Freestanding like init.c: no C library. argv[0] of the program is its path.
 */

typedef unsigned int u32;

/* x86-64 Linux, asm/unistd_64.h */
enum { SYS_write = 1, SYS_execve = 59, SYS_exit = 60, SYS_chdir = 80, SYS_setuid = 105, SYS_setgid = 106, SYS_setgroups = 116 };
enum { CANNOT = 126, MAX_GROUPS = 64 };

long sys(long number, long a, long b, long c);
__asm__(".globl sys\n"
        "sys:\n"
        "  mov %rdi, %rax\n  mov %rsi, %rdi\n  mov %rdx, %rsi\n  mov %rcx, %rdx\n"
        "  syscall\n"
        "  ret\n");

__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call become\n"
        "  hlt\n");

#define P(pointer) ((long)(pointer))

static void fail(const char *what)
{
    int n = 0;
    while (what[n])
        n++;
    sys(SYS_write, 2, P("cannot start: "), 14);
    sys(SYS_write, 2, P(what), n);
    sys(SYS_write, 2, P("\n"), 1);
    for (;;)
        sys(SYS_exit, CANNOT, 0, 0);
}

/* A number and what follows it. */
static u32 number(const char **text)
{
    u32 value = 0;
    if (**text < '0' || **text > '9')
        fail("bad number");
    while (**text >= '0' && **text <= '9')
        value = value * 10 + (*(*text)++ - '0');
    return value;
}

void become(long *stack)
{
    long count = *stack;
    const char **argv = (const char **)(stack + 1), **environment = argv + count + 1, *at;
    u32 groups[MAX_GROUPS];
    int total = 0;
    if (count < 6)
        fail("too few arguments");
    for (at = argv[3]; *at && total < MAX_GROUPS; at += *at == ',')
        groups[total++] = number(&at);
    at = argv[2];
    u32 gid = number(&at);
    at = argv[1];
    u32 uid = number(&at);
    if (sys(SYS_setgroups, total, P(groups), 0) < 0 || sys(SYS_setgid, gid, 0, 0) < 0 || sys(SYS_setuid, uid, 0, 0) < 0)
        fail("cannot become the user");
    if (sys(SYS_chdir, P(argv[4]), 0, 0) < 0)
        sys(SYS_chdir, P("/"), 0, 0);
    sys(SYS_execve, P(argv[5]), P(argv + 5), P(environment));
    fail(argv[5]);
}
