"The work of the demo, without its pages"
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]/'demo'))
from hashing import NAMED, Report, folder_in, hash_folder  # noqa: E402


@pytest.fixture
def root(tmp_path):
    for name in ('a/x', 'a/b/y', 'c/z'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(name)
    return tmp_path.resolve()


def job(root, name=''): return Report('1', folder_in(root, name), name)


def test_digest(root):
    "As `sha256sum` lists the files, sorted by name; a link is a line in the report"
    (root/'a/link').symlink_to('../c/z')
    *_,last = hash_folder(job(root, 'a'), root)
    listed = ''.join(f'{sha256(text.encode()).hexdigest()}  {name}\n' for name, text in [('b/y', 'a/b/y'), ('x', 'a/x')])
    assert (last.state, last.text) == ('finished', sha256(listed.encode()).hexdigest())
    assert (last.files, last.bytes, last.done, last.reasons) == (2, 8, 1, (('link', 'a link, not followed'),))


def test_empty(root):
    (root/'empty').mkdir()
    *_,last = hash_folder(job(root, 'empty'), root)
    assert (last.state, last.text, last.found) == ('finished', sha256().hexdigest(), 0)


def test_reports(root):
    "One after each folder that was searched, one after each block that was read, one with the result; `done` only grows"
    reports = [*hash_folder(job(root), root)]
    assert [(o.found, o.files, o.bytes) for o in reports] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 3), (3, 1, 8), (3, 2, 11), (3, 3, 11)]
    assert (done := [o.done for o in reports]) == sorted(done)


def test_files_that_vanish(root):
    "Between the search and the reading, one file goes: a line in the report. When all go, there is nothing to tell but that"
    for gone, state in (('a/x', 'finished'), ('c', None)):
        work = hash_folder(job(root, gone.split('/')[0]), root)
        next(o for o in work if o.found)
        shutil.rmtree(root/gone) if (root/gone).is_dir() else (root/gone).unlink()
        if state:
            *_,last = work
            assert (last.state, last.unread, last.reasons) == ('finished', 1, (('x', 'No such file or directory'),))
        else:
            assert next(work).reasons == (('z', 'No such file or directory'),)
            with pytest.raises(OSError) as e: next(work)
            assert e.value.strerror == 'No such file or directory'


def test_folder_that_vanishes(root):
    work = hash_folder(job(root, 'c'), root)
    shutil.rmtree(root/'c')
    with pytest.raises(FileNotFoundError): next(work)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_permissions(root):
    (root/'a/x').chmod(0)
    (root/'a/b').chmod(0)
    try:
        with pytest.raises(OSError, match='Permission denied'): [*hash_folder(job(root, 'a'), root)]
        with pytest.raises(OSError, match='Permission denied'): [*hash_folder(job(root, 'a/b'), root)]
    finally: (root/'a/b').chmod(0o700)


def test_many_unread(root):
    "All are counted, not all are named"
    for i in range(NAMED+10): (root/f'a/broken{i}').symlink_to('nowhere')
    *_,last = hash_folder(job(root, 'a'), root)
    assert (last.files, last.unread, len(last.reasons)) == (2, NAMED+10, NAMED)


@pytest.mark.parametrize('text', ['..', '/', '/etc', 'a/../..', '../{name}2', 'a/../../{name}2'])
def test_outside(root, text):
    "Nothing outside can be named, by no spelling, and what is said about it does not depend on what there is"
    root.with_name(root.name+'2').mkdir()
    text = text.format(name=root.name)
    with pytest.raises(ValueError, match='is not in'): folder_in(root, text)
    with pytest.raises(ValueError, match='is not in'): folder_in(root, text+'/no/such/place')


@pytest.mark.parametrize('target', ['/', '/etc', '/no/such/place', '/root', 'a', 'loop', '.'])
def test_links_tell_nothing(root, target):
    "A link is answered like a folder that is not there, wherever it leads; below a link as well"
    (root/'loop').symlink_to(target)
    for text in 'loop', 'loop/', 'loop/etc', 'loop/b', 'a/../loop':
        with pytest.raises(ValueError, match=f'There is no folder “{text}” in'): folder_in(root, text)
    reports = [*hash_folder(job(root), root)]
    assert reports[-1].reasons == (('loop', 'a link, not followed'),)


@pytest.mark.parametrize('text, why', [('nowhere', 'There is no folder'), ('a/x', 'There is no folder'), ('a\0', 'null')])
def test_no_folder(root, text, why):
    with pytest.raises(ValueError, match=why): folder_in(root, text)


@pytest.mark.parametrize('text, path', [('', ''), ('.', ''), (' ', ''), ('a/..', ''), ('{root}', ''), ('{root}/a/..', ''), ('./a/../', ''), ('a/b/', 'a/b'), ('{root}/a', 'a')])
def test_inside(root, text, path): assert folder_in(root, text.format(root=root)) == path


@pytest.mark.parametrize('what', ['a link', 'a pipe', 'a folder', 'a link above'])
def test_what_takes_the_place_of_a_file(root, tmp_path_factory, what):
    "Between the search and the reading another thing stands there: it is neither read nor waited for"
    secret = tmp_path_factory.mktemp('outside')/'x'
    secret.write_text('secret')
    work = hash_folder(job(root), root)
    next(o for o in work if o.found == 3)
    shutil.move(root/'a', root/'old')
    if what == 'a link above': (root/'a').symlink_to(secret.parent)
    else:
        (root/'a').mkdir()
        {'a link': lambda f: f.symlink_to(secret), 'a pipe': os.mkfifo, 'a folder': Path.mkdir}[what](root/'a/x')
    *_,last = work
    why = {'a link': 'Too many levels of symbolic links', 'a link above': 'Not a directory'}.get(what, 'not a regular file')
    assert (last.state, last.files, last.bytes, last.reasons[0]) == ('finished', 1, 3, ('a/x', why))


def test_a_folder_that_becomes_a_link(root):
    "While folders are searched, one of them is swapped for a link that leads outside: no name of what is there is told"
    work = hash_folder(job(root), root)
    next(work)
    shutil.rmtree(root/'a')
    (root/'a').symlink_to('/etc')
    *_,last = work
    assert (last.files, last.reasons) == (1, (('a', 'Not a directory'),))
