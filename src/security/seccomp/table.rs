//! The system calls of the RuntimeDefault profile, arranged by what they are for.
//!
//! Names stand in strings, parted by blanks. The rule of the list: a call is here when an ordinary program may need it
//! and the kernel checks it against the container's own privileges. What is left out gets EPERM: kernel modules, kexec,
//! swap, keyrings (not namespaced), io_uring (its own attack surface, and its operations pass by this filter),
//! userfaultfd, setting clocks, raw I/O ports, NUMA policy, and everything that makes or enters namespaces. Some of these
//! come back with the capability that guards them, below.

use crate::security::caps::Cap;

/// Names that some architecture lacks are harmless: the runtimes skip what they cannot resolve.
pub(super) const ALWAYS: &[&str] = &[
    FILES, PATHS, METADATA, XATTRS, READ_WRITE, POLLING, WATCHING, MEMORY, PROCESSES, IDENTITY, SCHEDULING, SIGNALS,
    TIME, SOCKETS, SYSV_IPC, MQUEUES, AIO, FUTEXES, SANDBOXING, SYSTEM,
];

const FILES: &str = "\
    open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl pipe pipe2 memfd_create \
    memfd_secret name_to_handle_at fadvise64 fadvise64_64 fallocate ftruncate ftruncate64 truncate truncate64 lseek \
    _llseek fsync fdatasync sync syncfs sync_file_range readahead cachestat";

const PATHS: &str = "\
    access faccessat faccessat2 chdir fchdir getcwd mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat \
    readlink readlinkat unlink unlinkat rename renameat renameat2 getdents getdents64 umask";

const METADATA: &str = "\
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 statmount \
    listmount chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 utime utimes \
    futimesat utimensat utimensat_time64 file_getattr file_setattr";

const XATTRS: &str = "\
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr \
    listxattrat removexattr lremovexattr fremovexattr removexattrat";

const READ_WRITE: &str = "\
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 sendfile sendfile64 copy_file_range \
    splice tee vmsplice";

const POLLING: &str = "\
    poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2";

/// `fanotify_mark` works on a descriptor that only `fanotify_init` gives out, which is gated below.
const WATCHING: &str = "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark";

const MEMORY: &str = "\
    brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall mseal \
    membarrier remap_file_pages map_shadow_stack pkey_alloc pkey_free pkey_mprotect process_mrelease";

/// `clone` is not here: it is allowed by its flags. `ptrace` and its like reach only processes that the kernel's own
/// checks let this one reach, and since Linux 4.8 they cannot be used to step around a filter.
const PROCESSES: &str = "\
    fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid setpgid getpgrp \
    getsid setsid prctl prlimit64 getrlimit ugetrlimit setrlimit getrusage set_tid_address set_thread_area \
    get_thread_area set_robust_list get_robust_list rseq pidfd_open pidfd_send_signal ptrace process_vm_readv \
    process_vm_writev restart_syscall";

const IDENTITY: &str = "\
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32 \
    getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid \
    setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset";

const SCHEDULING: &str = "\
    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam \
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval \
    sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set getcpu";

const SIGNALS: &str = "\
    kill tkill tgkill pause alarm sigaltstack sigprocmask sigreturn signalfd signalfd4 rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo";

/// Reading clocks and sleeping. `adjtimex` and `clock_adjtime` only read without CAP_SYS_TIME; the kernel sees to that.
const TIME: &str = "\
    time times gettimeofday adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 nanosleep getitimer setitimer timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64";

/// `socket` is not here: it is allowed by its family. `socketcall` is refused outright, because a filter cannot look behind
/// the pointer that it takes, so it would be a way around the families.
const SOCKETS: &str = "\
    socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt send sendto \
    sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64";

const SYSV_IPC: &str = "\
    ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";

const MQUEUES: &str = "\
    mq_open mq_unlink mq_notify mq_getsetattr mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64";

const AIO: &str = "\
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64";

const FUTEXES: &str = "futex futex_time64 futex_wait futex_waitv futex_wake futex_requeue";

/// A program may always take rights away from itself.
const SANDBOXING: &str = "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self";

const SYSTEM: &str = "uname sysinfo getrandom uretprobe uprobe";

/// What only one machine's kernel has.
pub(super) const X86: &str = "arch_prctl modify_ldt";
pub(super) const ARM: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
pub(super) const S390: &str = "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr";
pub(super) const PPC: &str = "sync_file_range2 swapcontext";
pub(super) const RISCV: &str = "riscv_flush_icache riscv_hwprobe";

/// What a container gets together with a capability: the calls that this capability is about.
pub(super) const WITH_CAP: &[(Cap, &str)] = &[
    (Cap::SYS_ADMIN, ADMIN),
    (Cap::DAC_READ_SEARCH, "open_by_handle_at"),
    (Cap::SYS_BOOT, "reboot"),
    (Cap::SYS_CHROOT, "chroot"),
    (Cap::SYS_MODULE, "init_module finit_module delete_module"),
    (Cap::SYS_PACCT, "acct"),
    (Cap::SYS_PTRACE, "kcmp pidfd_getfd process_madvise"),
    (Cap::SYS_RAWIO, "iopl ioperm"),
    (Cap::SYS_TIME, "settimeofday stime clock_settime clock_settime64"),
    (Cap::SYS_TTY_CONFIG, "vhangup"),
    (Cap::SYS_NICE, "get_mempolicy set_mempolicy mbind set_mempolicy_home_node"),
    (Cap::SYSLOG, "syslog"),
    (Cap::BPF, "bpf"),
    (Cap::PERFMON, "perf_event_open"),
];

/// Namespaces (here `clone` needs no look at its flags), mounts, the machine's names, and looking into the kernel.
const ADMIN: &str = "\
    clone clone3 setns unshare mount umount umount2 mount_setattr move_mount open_tree open_tree_attr fsopen \
    fsconfig fsmount fspick quotactl quotactl_fd sethostname setdomainname bpf perf_event_open fanotify_init \
    lookup_dcookie syslog lsm_get_self_attr lsm_set_self_attr lsm_list_modules";

/// Socket families that no container workload needs and that have been ways into the kernel, or out of the machine
/// (`AF_VSOCK` reaches the hypervisor, `AF_ALG` the kernel's crypto). They get EAFNOSUPPORT, as on a kernel without them.
pub(super) const DENIED_FAMILIES: &[u64] = &[
    12, // AF_DECnet, removed from Linux 6.1
    19, // AF_ECONET
    20, // AF_ATMSVC
    23, // AF_IRDA
    25, // AF_WANPIPE
    34, // AF_IUCV
    37, // AF_CAIF
    AF_ALG, AF_VSOCK,
];
pub(super) const AF_ALG: u64 = 38;
pub(super) const AF_VSOCK: u64 = 40;
/// One above the highest family that Linux 6.18 has.
pub(super) const FAMILIES_END: u64 = 46;

/// `personality(2)` values that change nothing that matters: PER_LINUX, PER_LINUX32, each with UNAME26, and "only ask".
pub(super) const PERSONALITIES: &[u64] = &[0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The namespace flags of `clone(2)`: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
pub(super) const CLONE_NEW_NAMESPACES: u64 = 0x7e02_0000;
