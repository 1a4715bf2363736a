//! Seccomp, capabilities, AppArmor, SELinux.
