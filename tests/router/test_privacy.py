from prefillshare.router.privacy import failure_text


def failed() -> Exception:
    try:
        try:
            int("the prompt")
        except ValueError:
            raise KeyError("the key") from None
    except KeyError as error:
        return error
    raise AssertionError


def test_a_failure_is_told_by_type_and_place() -> None:
    text = failure_text(failed(), with_messages=False)
    assert "KeyError at test_privacy.py:" in text
    assert "ValueError at test_privacy.py:" in text
    assert "failed" in text
    assert "the prompt" not in text
    assert "the key" not in text
    assert "int(" not in text


def test_with_messages_it_is_pythons_own_traceback() -> None:
    assert "KeyError: 'the key'" in failure_text(failed(), with_messages=True)
