"""Write every file of the working directory that git does not track to a descriptor, as a tar.

Run in a sandbox. Arguments are the name of the variable that holds the descriptor; standard input
has the paths that are left out, each ended by a null. Only files and links are written. Works on
Python 3.8 and later, with the standard library and the git command alone.
"""

import os
import stat
import subprocess
import sys
import tarfile


def main(variable):
    left_out = set(sys.stdin.buffer.read().split(b"\0"))
    asked = ["git", "ls-files", "-z", "--others"]
    names = subprocess.run(asked, stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    with os.fdopen(int(os.environ[variable]), "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                if name and name not in left_out:
                    add(archive, os.fsdecode(name))


def add(archive, name):
    kind = os.lstat(name).st_mode
    if stat.S_ISREG(kind) or stat.S_ISLNK(kind):
        archive.add(name, recursive=False)


if __name__ == "__main__":
    main(sys.argv[1])
