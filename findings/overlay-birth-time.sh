#!/usr/bin/env bash
# On overlayfs a file is born again when it is first written to, under the same inode number.
#
# Software: Linux 6.18 overlayfs (default options), GNU coreutils 9 `stat` (statx). No ashlar. Needs user namespaces or root.
# Behaviour: a file of the lower layer that is opened for writing is copied up. Device and inode number stay what they were (overlayfs sees to
#   that), but the birth time that statx tells is that of the copy from then on. A directory behaves likewise when something is first made in it.
# So: device, inode and birth time together, which tell a file that was replaced from one that was not elsewhere, tell here that a file was
#   replaced that nobody replaced. Device and inode alone do not.
# Output seen (2026-11-28):
#   before: same inode, born at its creation
#   after the first write: same inode, born 2 s later
#   after the second write: same inode, born when it was after the first
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

if [ "${1-}" != inside ]; then
    exec unshare --user --map-root-user --mount bash "$0" inside
fi
dir=$(mktemp -d)
mount -t tmpfs overlay-birth "$dir"
trap 'cd /; umount -l "$dir"; rmdir "$dir"' EXIT
cd "$dir"
mkdir lower upper work merged
echo one >lower/file
sleep 2
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
look() { stat -c '%d.%i %W' merged/file; }
read -r inode born < <(look)
echo two >>merged/file
read -r inode_1 born_1 < <(look)
sleep 2
echo three >>merged/file
read -r inode_2 born_2 < <(look)
umount merged
echo "before: $inode, born $born"
echo "after the first write: $inode_1, born $((born_1 - born)) s later"
echo "after the second write: $inode_2, born $((born_2 - born_1)) s after that"
[ "$inode" = "$inode_1" ] && [ "$inode" = "$inode_2" ] && [ "$born_1" -gt "$born" ] && [ "$born_2" = "$born_1" ]
