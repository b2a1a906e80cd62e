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


def work(root, name=''): return hash_folder(Report('1', folder_in(root, name), name), root)

def last(work): return [*work][-1]


def test_digest(root):
    "As `sha256sum` lists the files, sorted by name; a link is a line in the report"
    (root/'a/link').symlink_to('../c/z')
    (root/'empty').mkdir()
    end = last(work(root, 'a'))
    listed = ''.join(f'{sha256(text.encode()).hexdigest()}  {name}\n' for name, text in [('b/y', 'a/b/y'), ('x', 'a/x')])
    assert (end.state, end.text) == ('finished', sha256(listed.encode()).hexdigest())
    assert (end.files, end.bytes, end.done, end.reasons) == (2, 8, 1, (('link', 'a link, not followed'),))
    end = last(work(root, 'empty'))
    assert (end.state, end.text, end.found) == ('finished', sha256().hexdigest(), 0)


def test_reports(root):
    "One after each folder that was searched, after each block that was read, with the result; `done` only grows"
    reports = [*work(root)]
    assert [(o.found, o.files, o.bytes) for o in reports] == [
        (0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 3), (3, 1, 8), (3, 2, 11), (3, 3, 11)]
    assert (done := [o.done for o in reports]) == sorted(done)


def test_what_vanishes(root):
    "Between the search and the reading, a file goes: a line in the report. When all go, there is nothing to tell but that"
    one, all, folder = work(root, 'a'), work(root, 'c'), work(root, 'c')
    for o in one, all: next(report for report in o if report.found)
    (root/'a/x').unlink()
    shutil.rmtree(root/'c')
    end = last(one)
    assert (end.state, end.unread, end.reasons) == ('finished', 1, (('x', 'No such file or directory'),))
    assert next(all).reasons == (('z', 'No such file or directory'),)
    for o in all, folder:
        with pytest.raises(OSError, match='No such file or directory'): next(o)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_permissions(root):
    (root/'a/x').chmod(0)
    (root/'a/b').chmod(0)
    try:
        for name in 'a', 'a/b':
            with pytest.raises(OSError, match='Permission denied'): last(work(root, name))
    finally: (root/'a/b').chmod(0o700)


def test_many_unread(root):
    "All are counted, not all are named"
    for i in range(NAMED+10): (root/f'a/broken{i}').symlink_to('nowhere')
    end = last(work(root, 'a'))
    assert (end.files, end.unread, len(end.reasons)) == (2, NAMED+10, NAMED)


def test_what_is_named(root):
    "Nothing outside, by no spelling, and what is said about it does not depend on what there is"
    root.with_name(root.name+'2').mkdir()
    for text in '..', '/', '/etc', 'a/../..', f'../{root.name}2', f'a/../../{root.name}2':
        for o in text, f'{text}/no/such/place':
            with pytest.raises(ValueError, match='is not in'): folder_in(root, o)
    for text, why in [('nowhere', 'There is no folder'), ('a/x', 'There is no folder'), ('a\0', 'null')]:
        with pytest.raises(ValueError, match=why): folder_in(root, text)
    for text in '', '.', ' ', 'a/..', f'{root}', f'{root}/a/..', './a/../': assert folder_in(root, text) == ''
    assert (folder_in(root, 'a/b/'), folder_in(root, f'{root}/a')) == ('a/b', 'a')


@pytest.mark.parametrize('target', ['/', '/etc', '/no/such/place', '/root', 'a', 'loop', '.'])
def test_links_tell_nothing(root, target):
    "A link is answered like a folder that is not there, wherever it leads; below a link as well"
    (root/'loop').symlink_to(target)
    for text in 'loop', 'loop/', 'loop/etc', 'loop/b', 'a/../loop':
        with pytest.raises(ValueError, match=f'There is no folder “{text}” in'): folder_in(root, text)
    assert last(work(root)).reasons == (('loop', 'a link, not followed'),)


@pytest.mark.parametrize('what, why', [('a link', 'Too many levels of symbolic links'), ('a link above', 'Not a directory'),
                                       ('a pipe', 'not a regular file'), ('a folder', 'not a regular file')])
def test_what_takes_the_place_of_a_file(root, tmp_path_factory, what, why):
    "Between the search and the reading another thing stands there: it is neither read nor waited for"
    secret = tmp_path_factory.mktemp('outside')/'x'
    secret.write_text('secret')
    working = work(root)
    next(o for o in working if o.found == 3)
    shutil.move(root/'a', root/'old')
    if what == 'a link above': (root/'a').symlink_to(secret.parent)
    else:
        (root/'a').mkdir()
        {'a link': lambda f: f.symlink_to(secret), 'a pipe': os.mkfifo, 'a folder': Path.mkdir}[what](root/'a/x')
    end = last(working)
    assert (end.state, end.files, end.bytes, end.reasons[0]) == ('finished', 1, 3, ('a/x', why))


def test_a_folder_that_becomes_a_link(root):
    "While folders are searched, one of them is swapped for a link that leads outside: no name of what is there is told"
    working = work(root)
    next(working)
    shutil.rmtree(root/'a')
    (root/'a').symlink_to('/etc')
    end = last(working)
    assert (end.files, end.reasons) == (1, (('a', 'Not a directory'),))
