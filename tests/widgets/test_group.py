"""The group viewer."""

import pytest

pytest.importorskip("torch")

from course_lib.widgets import GroupViewer
from course_lib.widgets.group import SCHEMES, Group, GroupState, groups_of

ONE = Group("5 + 8?", ["5+8=13 #13", "#12", "5+8=12 #12", "<b>"], [1.1, 0.0, 0.0, 0.0], [8, 2, 8, 1])
EVEN = Group("1 + 1?", ["#2", "#2", "#2", "#2"], [1.1] * 4, [2] * 4)


def test_advantages_by_hand():
    state = GroupState([ONE])
    assert [a for a, _ in state.numbers()] == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-3)
    assert [a for a, _ in state.numbers("mean only")] == pytest.approx([0.825, -0.275, -0.275, -0.275])


def test_the_push_on_a_token_shrinks_with_length_but_for_dr_grpo():
    state = GroupState([ONE], longest=10)
    plain, dr = ([p for _, p in state.numbers(scheme)] for scheme in ("mean only", "Dr. GRPO"))
    assert plain[1] == pytest.approx(4 * plain[2]) and plain[1] == pytest.approx(100 * -0.275 / (4 * 2))
    assert dr[1] == pytest.approx(dr[2]) and dr[1] == pytest.approx(100 * -0.275 / (4 * 10))


def test_a_group_of_equals_teaches_nothing():
    state = GroupState([ONE, EVEN])
    state.choose(1)
    assert all(numbers == (0, 0) for scheme in SCHEMES for numbers in state.numbers(scheme))
    assert "teaches nothing" in state.text() and "teaches nothing" in state.html()


def test_flipping_a_reward_changes_the_mean_and_choosing_again_brings_it_back():
    state = GroupState([ONE])
    state.flip(1)
    assert state.rewards == [0.0] * 4
    state.flip(4)
    assert state.rewards == [0.0, 0.0, 0.0, 1.0] and "Mean reward 0.25" in state.summary()
    state.choose(0)
    assert state.rewards == [1.1, 0, 0, 0]


def test_text_and_picture_say_the_same_and_escape_what_the_model_wrote():
    state = GroupState([ONE])
    assert state.text().startswith("5 + 8?\n1. '5+8=13 #13': 8 tokens, reward 1.10, advantage 1.50, push on a token 4.69")
    assert "&lt;b&gt;" in state.html() and "<b>12" not in state.html()
    for _, _, words in SCHEMES.values():
        assert words
    state.use("Dr. GRPO")
    assert "1/L" in state.text()


@pytest.mark.parametrize("groups", [[], [Group("?", ["a"], [1.0], [1])], [Group("?", ["a", "b"], [1.0], [1, 1])],
                                    [Group("?", ["a", "b"], [1.0, 0.0], [1, 99])]])
def test_what_is_no_group_is_refused(groups):
    with pytest.raises(ValueError):
        GroupState(groups)
    with pytest.raises(ValueError):
        GroupState([ONE]).use("PPO")
    with pytest.raises(ValueError):
        GroupState([ONE]).flip(5)


def test_the_widget_drives_the_state():
    widget = GroupViewer([ONE, EVEN])
    widget.scheme.value = "Dr. GRPO"
    assert "1/L" in widget.picture.value
    widget.flips[1].click()
    assert widget.state.rewards[1] == 1.0
    widget.prompt.value = 1
    assert "teaches nothing" in widget.picture.value
    assert widget._repr_mimebundle_()["text/plain"] == widget.text()


def test_groups_of_a_language_models_episodes():
    from course_lib.environments import LMAgent, Questions, play
    from course_lib.lm.enumerate import letters_lm

    model, tokenizer = letters_lm(3, seed=0, device="cpu")
    reward = lambda prompts, completions, **columns: [float(len(c)) for c in completions]  # noqa: E731
    episodes = play(LMAgent(model, tokenizer, max_new_tokens=4), Questions([{"prompt": p} for p in "ab"], reward),
                    count=2, samples=3, seed=1)
    groups = groups_of(episodes, 3)
    assert {g.prompt for g in groups} == {"a", "b"} and all(len(g.answers) == 3 for g in groups)
    assert [g.rewards[0] for g in groups] == [float(len(g.answers[0])) for g in groups]
    assert max(groups[0].lengths) <= 4
