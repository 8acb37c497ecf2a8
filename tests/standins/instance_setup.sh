#!/bin/sh
# What the throwaway instance's first process does, in namespaces of its own (see instance.py): make
# every folder that a login or tattle writes to private and all others read-only, give the metadata
# service's addresses to lo, and then adopt and reap orphans until it is killed.
#
# usage: instance_setup.sh HOSTNAME INSTANCE_ID BOOT_ID_FILE SYSLOG_SOCKET
# Prints its process id as seen from outside, then "ready".
set -eu
hostname=$1 instance_id=$2 boot_id=$3 syslog=$4

read -r pid _ </proc/self/stat # this is still the outer /proc
echo "$pid"

hostname "$hostname"
ip -batch - <<'EOF'
link set lo up
address add 169.254.169.254/32 dev lo
address add 1.2.3.4/32 dev lo
EOF
if [ -e /proc/net/if_inet6 ]; then
    ip address add fd00:ec2::254/128 dev lo nodad || true
    ip address add 2001:db8::1/128 dev lo nodad || true
fi

mount -t proc proc /proc
mount --bind "$boot_id" /proc/sys/kernel/random/boot_id
# The kernel's settings are the machine's, but for the next process id.
last_pid=/proc/sys/kernel/ns_last_pid
[ ! -e $last_pid ] || mount --bind $last_pid $last_pid
mount --rbind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys

# /dev, assembled at /mnt while the machine's own is still there
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/pts /mnt/shm
for device in null zero full random urandom tty; do
    : >/mnt/$device
    mount -o bind,ro /dev/$device /mnt/$device # its mode is the machine's, too
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /mnt/pts
mount -t tmpfs -o mode=1777 tmpfs /mnt/shm
ln -s pts/ptmx /mnt/ptmx
ln -s /proc/self/fd /mnt/fd
ln -s fd/0 /mnt/stdin
ln -s fd/1 /mnt/stdout
ln -s fd/2 /mnt/stderr
: >/mnt/log
mount --bind "$syslog" /mnt/log
mount --move /mnt /dev

mount -t tmpfs -o mode=755 tmpfs /mnt
cp -a /etc/. /mnt
mount --move /mnt /etc

# Not only /: the machine's /var or /srv may be a file system of its own. But for cgroups, where a
# deliverer leaves its login's.
while read -r _ _ _ _ point _; do
    case $point in
    /proc | /proc/* | /dev | /dev/* | /etc | /sys/fs/cgroup*) continue ;;
    /home/* | /root/* | /run/* | /tmp/*) continue ;; # covered below
    /opt/tattle-coverage-*/data) continue ;; # what cover.py measures
    esac
    mount -o remount,bind,ro "$(printf %b "$(printf %s "$point" | sed 's/\\/\\0/g')")"
done </proc/self/mountinfo
for folder in /home /run /var/spool /var/cache /var/log /usr/local/bin; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
# The instance's id as cloud-init says it at each boot and, where there is firmware to tell it, as
# that does. On the disk is another one, as where an image was made with cloud-init, and starts without.
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir -p /mnt/cloud/data /mnt/dpkg
[ ! -e /var/lib/dpkg ] || mount --bind /var/lib/dpkg /mnt/dpkg # for who asks what is installed
mount --move /mnt /var/lib
echo i-00000000 >/var/lib/cloud/data/instance-id
mkdir -m 755 /run/cloud-init
echo "$instance_id" >/run/cloud-init/.instance-id
asset_tag=/sys/class/dmi/id/board_asset_tag
[ ! -e $asset_tag ] || mount --bind /run/cloud-init/.instance-id $asset_tag
mount -t tmpfs -o mode=700 tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mkdir -m 755 /run/sshd

cd /
# Another first process, where one is wanted: systemd needs to be it.
trap 'exec /bin/sh /run/init' USR1
echo ready
exec >/dev/null 2>&1
while :; do
    sleep infinity &
    wait # reaps whatever is left to this process, so that its CPU time can be read here
done
