#!/bin/sh
# Makes another folder than the machine's root the throwaway instance's root, a release of Debian's
# for one, and goes on with instance_setup.sh in there. Nothing is written to that folder.
#
# usage: instance_root.sh ROOT SETUP HOSTNAME INSTANCE_ID BOOT_ID_FILE SYSLOG_SOCKET
set -eu
root=$1 setup=$2 hostname=$3 instance_id=$4 boot_id=$5 syslog=$6

mount --bind "$root" "$root"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
# What the setup needs of the machine. It covers /run with a folder of its own.
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cp "$setup" "$root/run/setup"
for file in "$boot_id" "$syslog"; do
    name=$root/run/${file##*/}
    : >"$name"
    mount --bind "$file" "$name"
done

cd "$root"
pivot_root . mnt
umount -l /mnt
exec /bin/sh /run/setup "$hostname" "$instance_id" "/run/${boot_id##*/}" "/run/${syslog##*/}"
