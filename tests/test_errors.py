"""A user's errors end a program in one sentence; faults of the program do not."""

import pytest
from torch.utils.data import DataLoader, Dataset

from rankseg_m2f.errors import one_line_errors
from rankseg_m2f.images import ImageReadError


@pytest.mark.parametrize(
    "error, text",
    [
        (ValueError("a is 3, not 4"), "a is 3, not 4"),
        (KeyError("no dataset 'a'"), "no dataset 'a'"),
        (KeyError(), ""),
        (AssertionError("Dataset 'a' is empty!"), "Dataset 'a' is empty!"),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_users_are_sentences(error, text):
    with pytest.raises(SystemExit) as ended, one_line_errors("tool"):
        raise error
    assert ended.value.code == f"tool: {text}" and ended.value.__cause__ is error


class Unreadable(Dataset):
    """Its only image is broken."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ImageReadError("a.png: broken image (b: c)")


def test_of_another_process_the_sentence_is_kept():
    with pytest.raises(SystemExit) as ended, one_line_errors("tool", (ImageReadError,)):
        next(iter(DataLoader(Unreadable(), num_workers=1)))
    assert ended.value.code == "tool: a.png: broken image (b: c)"


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(TypeError), one_line_errors("tool"):
        raise TypeError("a")
    with pytest.raises(ValueError), one_line_errors("tool", (ImageReadError,)):
        raise ValueError("a")
