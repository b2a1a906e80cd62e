"The tools count what they ran"
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent/'tools'))
import check


def test_what_failed_in_any_report_counts(tmp_path):
    for name,numbers in dict(browser='tests="9" failures="2" errors="1" skipped="1"', others='tests="5" failures="0" errors="0" skipped="0"').items():
        (tmp_path/name).write_text(f'<testsuites><testsuite {numbers}/></testsuites>')
    assert check.counted(tmp_path/'browser', tmp_path/'others') == check.counted(tmp_path/'others', tmp_path/'browser') == (10, 3)


def test_a_check_that_fails_does_not_keep_others_from_running(monkeypatch, capsys):
    def wrong(): raise check.Failed('no')
    def broken(): raise ValueError('a bug')
    monkeypatch.setattr(check, 'CHECKS', dict(wrong=wrong, broken=broken, counts=lambda: (2, 1), right=lambda: None))
    assert check.main([])
    assert capsys.readouterr().out.splitlines()[-1] == '3 passed, 3 failed'
    assert not check.main(['right'])
