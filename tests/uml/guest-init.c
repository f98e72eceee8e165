/*
 * PID 1 of the test guest: a User-Mode-Linux kernel that tests/uml/umlrun boots on the host's root.
 *
 * It builds the guest's world (a tmpfs over the read-only root, /proc, /sys, /dev, the loopback interface),
 * loads the modules it is told to, runs one command, writes its exit status where the host finds it, and
 * powers off. It talks to the host through one directory, named by UMLDIR= on the kernel's command line:
 *
 *   modules   in:  one "PATH [PARAMETERS]" a line, dependencies first
 *   command   in:  a script for bash
 *   status    out: the exit status of the command, in decimal
 *
 * It is C and static because it runs before there is a root to run anything else from, and because each exec
 * costs the guest a tenth of a second. It never writes to the host outside of that directory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* The host's directory, as the guest sees it. */
#define HOST "/run/host"

static void write_status(int status) {
    int fd = open(HOST "/status", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || dprintf(fd, "%d\n", status) < 0 || fsync(fd) != 0)
        perror("guest-init: " HOST "/status");
    if (fd >= 0)
        close(fd);
}

static void power_off(void) {
    reboot(RB_POWER_OFF);
    _exit(1);
}

/* A guest that cannot be set up reports no status at all: umlrun then prints the console. */
static void fail(const char *what, const char *which) {
    fprintf(stderr, "guest-init: %s %s: %s\n", what, which, strerror(errno));
    power_off();
}

/* The guest has one user, root, and no use for set-uid programs. On a host where the guest runs as somebody else
   their owner would not be root, and `mount` would give up its rights. */
static void must_mount(const char *source, const char *target, const char *type, const char *options) {
    if (mkdir(target, 0755) != 0 && errno != EEXIST)
        fail("mkdir", target);
    if (mount(source, target, type, MS_NOSUID, options) != 0)
        fail("mount", target);
}

/* The whole of a file, with a zero behind it; `len` may be NULL. */
static char *slurp(const char *path, size_t *len) {
    size_t have = 0, room = 1 << 16;
    char *data = malloc(room);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !data)
        fail("read", path);
    for (;;) {
        ssize_t n = read(fd, data + have, room - have - 1);
        if (n < 0)
            fail("read", path);
        if (n == 0)
            break;
        have += n;
        if (room - have < 2 && !(data = realloc(data, room *= 2)))
            fail("read", path);
    }
    close(fd);
    data[have] = 0;
    if (len)
        *len = have;
    return data;
}

/* init_module, because finit_module may be refused for files of hostfs. */
static void load_modules(char *list) {
    char *rest;
    for (char *line = strtok_r(list, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        size_t len;
        char *parameters = strchr(line, ' ');
        if (parameters)
            *parameters++ = 0;
        char *image = slurp(line, &len);
        if (syscall(SYS_init_module, image, len, parameters ? parameters : "") != 0 && errno != EEXIST)
            fail("load", line);
        free(image);
    }
}

/* Puts a writable tmpfs above the host's root and makes the pair the root. */
static void overlay_root(const char *host_directory) {
    mkdir("/run/upper", 0755);
    mkdir("/run/work", 0755);
    must_mount("overlay", "/run/root", "overlay", "lowerdir=/,upperdir=/run/upper,workdir=/run/work");
    if (mount("/proc", "/run/root/proc", NULL, MS_MOVE, NULL) != 0)
        fail("move", "/proc");
    if (mount("/dev", "/run/root/dev", NULL, MS_MOVE, NULL) != 0)
        fail("move", "/dev");
    mkdir("/run/root/.old", 0755);
    if (chdir("/run/root") != 0 || syscall(SYS_pivot_root, ".", ".old") != 0 || chdir("/") != 0)
        fail("pivot_root", "/run/root");
    must_mount("tmpfs", "/run", "tmpfs", "size=50%");
    must_mount("none", HOST, "hostfs", host_directory);
    if (umount2("/.old", MNT_DETACH) == 0)
        rmdir("/.old");
}

static void furnish(void) {
    must_mount("sysfs", "/sys", "sysfs", NULL);
    must_mount("tmpfs", "/dev/shm", "tmpfs", "size=50%");
    /* A devtmpfs that already has the links is just as well. */
    if (symlink("/proc/self/fd", "/dev/fd") != 0 && errno != EEXIST)
        fail("symlink", "/dev/fd");

    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(request.ifr_name, "lo");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        fail("bring up", "lo");
    close(fd);
}

/* The command's output goes to a terminal of the guest that is a plain file for the host: no CR, no echo. */
static int open_raw(const char *path) {
    struct termios mode;
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || tcgetattr(fd, &mode) != 0)
        fail("open", path);
    cfmakeraw(&mode);
    if (tcsetattr(fd, TCSANOW, &mode) != 0)
        fail("set up", path);
    return fd;
}

static int run_command(int out, int err) {
    pid_t command = fork();
    if (command == 0) {
        char *argv[] = {"bash", HOST "/command", NULL};
        int null = open("/dev/null", O_RDONLY);
        setsid();
        if (dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
            _exit(126);
        execv("/bin/bash", argv);
        _exit(127);
    }
    for (;;) {
        int status;
        pid_t who = wait(&status);
        if (who == command)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (who < 0 && errno != EINTR)
            fail("wait for", "the command");
    }
}

int main(void) {
    must_mount("proc", "/proc", "proc", NULL);
    /* Busy where the kernel has mounted it already. */
    if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) != 0 && errno != EBUSY)
        fail("mount", "/dev");
    char *directory = strstr(slurp("/proc/cmdline", NULL), "UMLDIR=");
    if (!directory)
        fail("find", "UMLDIR= on the kernel's command line");
    directory += strlen("UMLDIR=");
    directory[strcspn(directory, " \n")] = 0;

    must_mount("tmpfs", "/run", "tmpfs", "size=75%");
    must_mount("none", HOST, "hostfs", directory);
    load_modules(slurp(HOST "/modules", NULL));
    overlay_root(directory);
    furnish();

    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("LANG", "C", 1);
    int out = open_raw("/dev/tty1"), err = open_raw("/dev/tty2");
    int status = run_command(out, err);

    /* What the command left behind must not write any more, and what it printed must arrive. */
    kill(-1, SIGKILL);
    tcdrain(out);
    tcdrain(err);
    write_status(status);
    power_off();
}
