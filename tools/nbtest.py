"""Run the notebooks as `nbdev-test` does (its worker function, flags and time limit) and count them

    python tools/nbtest.py [notebook or part of its name ...]
"""
import sys

from fastcore.parallel import parallel
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells, test_nb


def main(names):
    cfg = get_config()
    flags = cfg.tst_flags.split() if isinstance(cfg.tst_flags, str) else cfg.tst_flags
    files = [f.absolute() for f in sorted(nbglob(as_path=True)) if not names or any(n in str(f) for n in names)]
    with working_directory(cfg.nbs_path):
        # `test_nb` itself is what is mapped: in a worker, `__main__` is the notebook's namespace, where no function of this file lives
        results = list(parallel(test_nb, files, skip_flags=flags, basepath=cfg.config_path, cell_timeout=cfg.cell_timeout or None,
                                n_workers=min(2, len(files)), pause=0.01))
    for f, (ok, secs) in zip(files, results, strict=True):
        name = f.relative_to(cfg.nbs_path).as_posix()
        print(f"{'ok  ' if ok else 'FAIL'} {name:32} {len(nb_test_cells(f, flags)):3} cells {secs:6.1f} s")
    failed = sum(not ok for ok, _ in results)
    print(f'{len(results) - failed} passed, {failed} failed')
    return failed or not results


if __name__ == '__main__': sys.exit(bool(main(sys.argv[1:])))
