"The work of the job board: the SHA-256 of every file in a folder. This module knows nothing of pages and streams"
import errno,hashlib,os,stat
from contextlib import contextmanager
from dataclasses import dataclass,replace

BLOCK = 1<<18  # Bytes that are read at once
NAMED = 50     # Unread files that a report names


@dataclass(frozen=True)
class Report:
    "How far a job is; a report never changes, a newer one replaces it"
    id: str
    path: str               # Folder, below the root
    name: str               # The same, as people are shown it
    state: str = 'waiting'  # Then `running`, and in the end `finished`, `cancelled` or `failed`
    found: int = 0          # Files to read
    size: int = 0           # Their bytes; 0 while files are being looked for
    files: int = 0          # Files read
    bytes: int = 0          # Bytes read
    seconds: float = 0.     # Since the start
    text: str = ''          # The file at hand; in the end the digest of all files, or what went wrong
    unread: int = 0         # Files and folders that could not be read
    reasons: tuple = ()     # Of the first of them: (name, reason)

    @property
    def speed(self): return self.files/self.seconds if self.seconds else 0.  # Files per second

    @property
    def done(self):
        return 1. if self.state=='finished' else min(1., (self.files+self.bytes)/max(1, self.found+self.size))


def shown(path):
    "`path` as text: to the system a name may be any bytes"
    return os.fsencode(path).decode(errors='replace')


@contextmanager
def inside(root, path, flags=os.O_DIRECTORY):
    """Open `path` below the folder `root`, and give its descriptor; `OSError` where that can't be done

    No part of it may be a link, also one that takes the place of a folder or a file at this moment: no link is
    followed, so no answer depends on where it leads."""
    fd,parts = os.open(root, os.O_RDONLY|os.O_DIRECTORY),[o for o in path.split('/') if o]
    try:
        for i,part in enumerate(parts, 1):
            above,fd = fd,None
            # Without O_NONBLOCK, opening a pipe blocks until another process writes into it
            kind = flags if i==len(parts) else os.O_DIRECTORY
            try: fd = os.open(part, os.O_RDONLY|os.O_NOFOLLOW|os.O_NONBLOCK|kind, dir_fd=above)
            finally: os.close(above)
        yield fd
    finally:
        if fd is not None: os.close(fd)


def folder_in(root, text):
    "Find the path below `root` of the folder `text`; `ValueError` or `OSError` where there is none"
    path = os.path.normpath(os.path.join(root, text.strip()))
    if os.path.commonpath([root, path])!=str(root):
        raise ValueError(f'“{text}” is not in {root}. Nothing outside is read.')
    path = '' if path==str(root) else os.path.relpath(path, root)
    try:
        with inside(root, path): return path
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP): raise
        raise ValueError(f'There is no folder “{text}” in {root}.') from None


def listed(root, path):
    "List the folder `path`: names of its folders, (name, size) of its files, (name, reason) of all else"
    folders,files,other = [],[],[]
    with inside(root, path) as fd, os.scandir(fd) as entries:
        for o in entries:
            try:
                info = o.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode): folders.append(o.name)
                elif stat.S_ISREG(info.st_mode): files.append((o.name, info.st_size))
                elif stat.S_ISLNK(info.st_mode): other.append((o.name, 'a link, not followed'))
                else: other.append((o.name, 'not a regular file'))
            except OSError as e: other.append((o.name, e.strerror))
    return sorted(folders),sorted(files),sorted(other)


def hash_folder(job, root):
    "Read the folder of `job`, with a new report after each block; `OSError` if nothing can be read"
    files,digests,buffer = [],{},memoryview(bytearray(BLOCK))

    def skip(path, reason):
        nonlocal job
        job = replace(job, unread=job.unread+1, reasons=(*job.reasons, (shown(path), reason))[:NAMED])

    size,folders = 0,['']  # Relative to the job's folder, as all names below
    while folders:
        folder = folders.pop()
        try: subfolders,found,other = listed(root, os.path.join(job.path, folder))
        except OSError as e:
            if not folder: raise  # The job's folder itself; one within is a line in the report
            skip(folder, e.strerror)
            continue
        folders += [os.path.join(folder, o) for o in reversed(subfolders)]
        files += [os.path.join(folder, name) for name,_ in found]
        size += sum(n for _,n in found)
        for name,reason in other: skip(os.path.join(folder, name), reason)
        job = replace(job, found=len(files), text=shown(folder or '.'))
        yield job

    job = replace(job, size=size)
    for path in files:
        sha,name = hashlib.sha256(),shown(path)
        try:
            with inside(root, os.path.join(job.path, path), 0) as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode): raise OSError(0, 'not a regular file')
                while n := os.readv(fd, [buffer]):
                    sha.update(buffer[:n])
                    job = replace(job, bytes=job.bytes+n, text=name)
                    yield job
            digests[os.fsencode(path)] = sha.hexdigest()
            job = replace(job, files=len(digests))
        except OSError as e: skip(path, e.strerror)

    if job.unread and not digests:
        yield job
        raise OSError(0, job.reasons[0][1])
    # What `sha256sum` would list, sorted by name
    total = hashlib.sha256(b''.join(sha.encode()+b'  '+name+b'\n' for name,sha in sorted(digests.items())))
    yield replace(job, state='finished', text=total.hexdigest())
