"The work of the job board: the SHA-256 of every file in a folder. Nothing here knows of pages or streams"
import hashlib,os,stat
from dataclasses import dataclass,replace
from pathlib import Path

BLOCK = 1<<18  # Bytes that are read at once
NAMED = 50     # Unread files that a report names


@dataclass(frozen=True)
class Report:
    "How far a job is; a report never changes, a newer one takes its place"
    id: str
    path: str               # Folder, with links resolved
    name: str               # The same, as people are shown it
    state: str = 'running'  # Later `finished`, `cancelled` or `failed`
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
    def done(self): return 1. if self.state=='finished' else min(1., (self.files+self.bytes)/max(1, self.found+self.size))


def shown(path, start):
    "`path` relative to `start`, as text: to the system a name may be any bytes"
    return os.fsencode(os.path.relpath(path, start)).decode(errors='replace')


def folder_in(root, text):
    "The path of the folder `text` in `root`; `ValueError` says why it can't be had"
    path = Path(os.path.realpath(os.path.join(root, text.strip())))
    # First, so that nobody learns what there is outside
    if not path.is_relative_to(root): raise ValueError(f'“{text}” is not in {root}. Nothing outside is read.')
    if not path.is_dir(): raise ValueError(f'“{text}” is not a folder.' if path.exists() else f'There is no folder “{text}” in {root}.')
    return str(path)


def size_of(path, root):
    "Bytes of the file `path`; `OSError` says why it is not to be read"
    if os.path.islink(path) and not Path(os.path.realpath(path, strict=True)).is_relative_to(root): raise OSError(0, 'a link that leads outside')
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode): raise OSError(0, 'a link to a folder, not followed')
    if not stat.S_ISREG(info.st_mode): raise OSError(0, 'not a regular file')
    return info.st_size


def hash_folder(job, root):
    "Read the folder of `job`; gives newer and newer reports, after each block one, and raises `OSError` if nothing can be read"
    os.listdir(job.path)  # Inside the folder, one that can't be listed is a line in the report; this one is the end
    files,digests,buffer = [],{},memoryview(bytearray(BLOCK))

    def skip(e, path=None):
        nonlocal job
        reason = shown(path or e.filename, job.path),e.strerror
        job = replace(job, unread=job.unread+1, reasons=(*job.reasons, reason)[:NAMED])

    size = 0
    for folder,subfolders,names in os.walk(job.path, onerror=skip):
        subfolders.sort()
        links = [o for o in subfolders if os.path.islink(os.path.join(folder, o))]
        for path in (os.path.join(folder, o) for o in sorted(links+names)):
            try: size += size_of(path, root)
            except OSError as e: skip(e, path)
            else: files.append(path)
        job = replace(job, found=len(files), text=shown(folder, job.path))
        yield job

    job = replace(job, size=size)
    for path in files:
        sha,name = hashlib.sha256(),shown(path, job.path)
        try:
            with open(path, 'rb', buffering=0) as f:
                while n := f.readinto(buffer):
                    sha.update(buffer[:n])
                    job = replace(job, bytes=job.bytes+n, text=name)
                    yield job
            digests[os.fsencode(os.path.relpath(path, job.path))] = sha.hexdigest()
            job = replace(job, files=len(digests))
        except OSError as e: skip(e, path)

    if job.unread and not digests:
        yield job
        raise OSError(0, job.reasons[0][1])
    # What `sha256sum` would list, sorted by name
    total = hashlib.sha256(b''.join(sha.encode()+b'  '+name+b'\n' for name,sha in sorted(digests.items())))
    yield replace(job, state='finished', text=total.hexdigest())
