"""Passwords and tokens are struck out, and nothing else."""

from __future__ import annotations

import pytest

from esper.redact import credentials, redact, remember_credentials, without_credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "https://a:b@c/d, redis://:p@ss@h:1/0 and ftp://h/x by me@h",
            "https://c/d, redis://h:1/0 and ftp://h/x by me@h",
        ),
        ("http://TOKEN@h:5000/x", "http://h:5000/x"),
        ("postgresql://u:a/b@h/db", "postgresql://h/db"),
        ("http://h/?token=abc&user=me#x", "http://h/?token=***&user=me#x"),
        ("postgresql://h/db?sslmode=require&sslpassword=abc", "postgresql://h/db?sslmode=require&sslpassword=***"),
        ("(https://h/?X-Amz-Signature=abc) failed", "(https://h/?X-Amz-Signature=*** failed"),
        ("http://h/#access_token=abc", "http://h/#access_token=***"),
        ("http://localhost:4873/@types/x?author=me", "http://localhost:4873/@types/x?author=me"),
        ("sqlite:////home/me@lab/a.db?mode=ro&uri=true", "sqlite:////home/me@lab/a.db?mode=ro&uri=true"),
        ("token=abc, password=abc in no address", "token=abc, password=abc in no address"),
    ],
)
def test_credentials_of_addresses_go_and_the_rest_stays(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert without_credentials(expected) == expected


def test_a_user_is_a_credential_where_it_may_be_a_token() -> None:
    assert credentials("https://TOKEN@h and postgresql://lab@h/db and redis://lab@h and redis://u:pw@h") == [
        "TOKEN",
        "pw",
    ]
    assert credentials("ssh://git@h", users=False) == []


def test_secrets_of_the_environment_are_struck_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "s3cret-1")
    monkeypatch.setenv("LAB_DATABASE", "mysql://u:s3%2Fcret@h/db")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redact("s3cret-1 or s3/cret or s3%2Fcret: false") == "*** or *** or ***: false"


def test_credentials_of_a_setting_are_struck_out_without_its_address() -> None:
    assert redact("Max retries exceeded with url: /?token=canary-42/api") == (
        "Max retries exceeded with url: /?token=canary-42/api"
    )
    remember_credentials("http://h/?token=canary-42")
    assert redact("Max retries exceeded with url: /?token=canary-42/api") == (
        "Max retries exceeded with url: /?token=***/api"
    )
