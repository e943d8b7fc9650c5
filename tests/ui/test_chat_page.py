"""What a streamed answer costs the server does not grow with its pieces, nor with the runs of the workspace."""

from pathlib import Path

from benchmarks.chat_page import ask, chat_of, workspace_of


def test_a_piece_of_an_answer_opens_no_file_and_lists_no_folder_however_many_runs_there_are(tmp_path: Path) -> None:
    many, one = (chat_of(workspace_of(tmp_path / str(runs), runs), tokens=60) for runs in (40, 1))
    for chat in (many, one):
        ask(chat)  # the first question brings the model into memory
    long_answer, of_one = ask(many), ask(one)
    vars(many.studio.chat)["tokens"] = 10
    short_answer = ask(many)
    assert long_answer["updates"] == short_answer["updates"] + 50
    for counted in ("files_opened", "folders_listed"):
        assert 0 < long_answer[counted] == short_answer[counted] == of_one[counted]
