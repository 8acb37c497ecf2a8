#!/bin/sh
# Makes a folder the root directory, and runs the tests of the checkout in it. In namespaces of its
# own (see fresh.py).
#
# usage: fresh_root.sh FOLDER HOSTNAME CHECKOUT [TEST …]
set -eu
folder=$1 hostname=$2 checkout=$3
shift 3

hostname "$hostname"
mount --bind "$folder" "$folder"
cd "$folder"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
pivot_root . mnt
cd /
umount -l /mnt
cd "$checkout"
exec ./build.sh test "$@"
