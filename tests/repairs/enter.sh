#!/bin/sh
# A machine of its own for one test: run by `unshare -m`. What follows is seen by this shell and its
# children alone. $1 is an empty folder.
set -e
mount --make-rprivate /
root=$1/root
mkdir -p "$root"
mount -t tmpfs -o mode=755 root "$root"
for path in /*; do
    name=${path#/}
    if [ -L "$path" ]; then
        cp -P "$path" "$root/$name"
    elif [ "$name" = proc ]; then
        mkdir "$root/proc" "$root/realproc"
        mount --rbind /proc "$root/realproc"
    elif [ -d "$path" ]; then
        mkdir "$root/$name"
        mount --rbind "$path" "$root/$name"
    fi
    # Files, such as the mark of a container, are left out.
done
# Files of the kernel: the real ones, but for modules and settings, which are simulated.
mount -t tmpfs proc "$root/proc"
set --
for path in /proc/*; do
    set -- "$@" "/realproc/${path#/proc/}"
done
ln -s "$@" "$root/proc/"
rm -f "$root/proc/modules" "$root/proc/sys"
mkdir -p "$root/proc/sys/kernel/random" "$root/proc/sys/vm"
for name in hostname osrelease random/boot_id; do
    cat "/proc/sys/kernel/$name" > "$root/proc/sys/kernel/$name"
done
echo 0 > "$root/proc/sys/vm/overcommit_memory"
echo "nvidia 1 0 - Live 0x0000000000000000" > "$root/proc/modules"
mount -t tmpfs -o size=64m,nosuid,nodev shm "$root/dev/shm"
mount -t tmpfs limits "$root/etc/security/limits.d"
exec chroot "$root" /bin/sh
