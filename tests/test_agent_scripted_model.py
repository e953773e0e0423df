"""The scripted model: it says what its script says, and fails as it is told to."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ScriptError
from agent.scripted_model import ScriptedModel


def post(base_url: str, body: object, *, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    address = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("POST", path, json.dumps(body), {"Authorization": "Bearer secret"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def question(text: str, model: str = "m") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def said(base_url: str, text: str, model: str = "m") -> str:
    status, record = post(base_url, question(text, model))
    assert status == 200
    content: str = record["choices"][0]["message"]["content"]
    return content


def test_answers_are_played_in_order_and_then_there_are_none() -> None:
    with ScriptedModel({"answers": [{"content": "one"}, {"json": {"two": 2}}]}) as model:
        assert said(model.base_url, "a") == "one"
        assert json.loads(said(model.base_url, "b")) == {"two": 2}
        status, record = post(model.base_url, question("c"))
        assert status == 500 and "no answer left" in record["error"]["message"]
        assert [asked.text for asked in model.asked] == ["a", "b", "c"]
        assert all(asked.has_key and asked.model == "m" for asked in model.asked)
        assert "secret" not in repr(model.asked)


def test_rules_are_for_models_and_for_texts() -> None:
    script = {
        "rules": [
            {"model": "heavy-*", "answers": [{"content": "heavy", "times": None}]},
            {"matches": "(?i)commit", "answers": [{"content": "fix: it", "times": 2}]},
        ],
        "answers": [{"content": "else", "times": None}],
    }
    with ScriptedModel(script) as model:
        assert said(model.base_url, "x", "heavy-1") == "heavy"
        assert [said(model.base_url, "a Commit") for _ in range(3)] == [
            "fix: it",
            "fix: it",
            "else",
        ]


def test_faults_are_what_servers_do() -> None:
    plan = {"analysis": "why"}
    faults = ["429", "500", "error-in-200", "prose", "invalid-json", "wrong-schema", "truncated"]
    answers = [{"json": plan, "fault": fault, "retry_after_s": 2} for fault in faults]
    with ScriptedModel({"answers": answers}) as model:
        assert post(model.base_url, question("x"))[0] == 429
        assert post(model.base_url, question("x"))[0] == 500
        assert post(model.base_url, question("x"))[1]["error"]["code"] == 502
        assert said(model.base_url, "x").startswith("Here is what I propose.\n\n```json\n{")
        with pytest.raises(json.JSONDecodeError):
            json.loads(said(model.base_url, "x"))
        assert json.loads(said(model.base_url, "x")) == {"unexpected": json.dumps(plan)}
        record = post(model.base_url, question("x"))[1]
        assert record["choices"][0]["finish_reason"] == "length"


def test_a_cut_answer_breaks_the_connection() -> None:
    script = {"answers": [{"content": "x" * 1000, "fault": "cut"}]}
    with ScriptedModel(script) as model, pytest.raises((http.client.HTTPException, OSError)):
        post(model.base_url, question("x"))


def test_what_is_no_question_is_refused() -> None:
    with ScriptedModel({"answers": [{"content": "x"}]}) as model:
        for body in ("text", {}, {"model": "m"}, {"model": "m", "messages": "no"}):
            assert post(model.base_url, body)[0] == 400
        assert post(model.base_url, question("x"), path="/elsewhere")[0] == 404
        assert said(model.base_url, "x") == "x"


@pytest.mark.parametrize(
    ("script", "mistake"),
    [
        ({"answer": []}, "`answer`: Extra inputs"),
        ({"answers": [{"fault": "fire"}]}, "there is no fault `fire`; there are 429, 500"),
        ({"answers": [{"times": 0}]}, "`answers.0.times`"),
        ({"rules": [{"answers": []}]}, "`rules.0.answers`"),
        ({"rules": [{"matches": "(", "answers": [{}]}]}, "is no regular expression"),
    ],
)
def test_a_script_that_cannot_be_meant_is_refused(script: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ScriptError) as raised:
        ScriptedModel(script)
    assert mistake in str(raised.value)


def test_it_runs_as_a_program_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('{"answers": [{"content": "hello"}]}')
    command = [sys.executable, "-m", "agent.scripted_model", "--script"]
    child = subprocess.Popen(
        [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    base_url = child.stdout.readline().strip()
    assert said(base_url, "x") == "hello"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[1] == "interrupted\n"
    assert child.returncode == 130
    for text, sentence in ((None, "cannot be read"), ("[1", "cannot be meant"), ("7", "script")):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and sentence in done.stderr
        assert "Traceback" not in done.stderr
