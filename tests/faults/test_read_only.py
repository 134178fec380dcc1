"""A run's folder that can be read but not written: training on is one sentence, using the run needs no more."""

import ctypes
import os

import pytest
from killed import Command

from anypo import config as configuration
from anypo.loops.learn import learn
from anypo.runs.folder import create

OVERRIDE = 1 << 1
"""CAP_DAC_OVERRIDE: root writes whatever the permissions say."""


class Capabilities(ctypes.Structure):
    """One half of what capget and capset take."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def obey_permissions():
    """Let this process obey the permissions of files, as root too."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, halves = (ctypes.c_uint32 * 2)(0x20080522, 0), (Capabilities * 2)()
        assert libc.capget(header, halves) == 0
        halves[0].effective &= ~OVERRIDE
        halves[0].permitted &= ~OVERRIDE
        assert libc.capset(header, halves) == 0, os.strerror(ctypes.get_errno())


def contents(folder):
    """What the files of a run hold, but for the lock, which names a process."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def set_mode(folder, files, folders):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


@pytest.fixture
def run(tmp_path):
    """A run that stopped in its second batch."""
    values = {"method": "grpo", "task": "bandit", "steps": 4, "checkpoint_every": 1, "out": str(tmp_path / "r")}

    def stop(record):
        if record["batch"] == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        learn(create(configuration.from_dict(values)), stop)
    yield tmp_path / "r"
    set_mode(tmp_path / "r", 0o644, 0o755)


@pytest.mark.parametrize(("files", "folders"), [(0o644, 0o555), (0o444, 0o555), (0o444, 0o755)])
def test_a_folder_that_is_read_only_ends_resume_in_one_sentence_and_stays_as_it_is(run, files, folders):
    set_mode(run, files, folders)
    before = contents(run)
    code, _, errors = Command(run.parent, "resume", "r", prepare=obey_permissions).end()
    assert (code, errors.count("\n")) == (1, 1)
    assert "anypo: cannot write to r: Permission denied; mend that and go on with `anypo resume r`" in errors
    assert contents(run) == before
    set_mode(run, 0o644, 0o755)
    assert Command(run.parent, "resume", "r", prepare=obey_permissions).end()[0] == 0


def test_a_run_whose_folder_is_read_only_can_be_evaluated(run):
    set_mode(run, 0o444, 0o555)
    code, out, errors = Command(run.parent, "evaluate", "r", prepare=obey_permissions).end()
    assert (code, errors) == (0, "")
    assert "after 1 batches" in out[0]


def test_a_new_run_below_a_read_only_folder_is_one_sentence(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    words = ("train", "grpo", "--task", "bandit", "--steps", 2, "--out", "closed/r")
    code, _, errors = Command(tmp_path, *words, prepare=obey_permissions).end()
    assert code == 2
    assert errors == "anypo: cannot write the run to closed/r: Permission denied; choose another --out\n"
