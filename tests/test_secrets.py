import pytest

from wmtp.secrets import redacted, without_secrets


def test_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sometimes")
    text = without_secrets("hf_abcdefgh 0123456789 /home/me/token sometimes")
    assert text == "*** *** /home/me/token sometimes"


def test_short_values_do_not_blank_ordinary_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "on")
    assert without_secrets("evaluation on") == "evaluation on"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ghp_1234@host/x", "https://***@host/x"),
        ("postgresql://u:p:q@db:5432/a and b@c", "postgresql://***@db:5432/a and b@c"),
        ("s3://b/k?X-Amz-Signature=ab12&v=1", "s3://b/k?X-Amz-Signature=***&v=1"),
        ("http://me:p@ss@host/a", "http://***@host/a"),
        ("sqlite:////home/me/runs/mlflow.db", "sqlite:////home/me/runs/mlflow.db"),
    ],
)
def test_logins_and_signatures_in_uris_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{'Authorization': 'Basic bWU6aHVu=='}", "{'Authorization': 'Basic ***'}"),
        ("authorization: bearer ab.cd-ef, x", "authorization: bearer *** x"),
        ("a basic question of authorization", "a basic question of authorization"),
    ],
)
def test_a_login_as_a_request_carries_it_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_nested_settings_keep_their_shape() -> None:
    settings = {"a": [1, "http://u:p@h"], "password": "x", "tokens_seen": 7, "token": None}
    assert redacted(settings) == {
        "a": [1, "http://***@h"],
        "password": "***",
        "tokens_seen": 7,
        "token": None,
    }
