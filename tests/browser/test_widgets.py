"""Every widget in a real JupyterLab, clicked in headless Chromium; and its picture in a saved notebook."""

import copy
import re

import pytest

By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
Select = pytest.importorskip("selenium.webdriver.support.ui").Select

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]


def until(driver, condition, what: str, seconds: int = 180):
    return Wait(driver, seconds, ignored_exceptions=(Exception,)).until(lambda _: condition(), what)


def outputs(driver) -> list:
    return driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-vbox")


def picture(output) -> str:
    return output.find_element(By.CSS_SELECTOR, ".widget-html-content").text


def press(output, label: str) -> None:
    (button,) = [b for b in output.find_elements(By.TAG_NAME, "button") if b.text == label]
    button.click()


def play(output) -> None:
    output.find_element(By.CSS_SELECTOR, ".widget-play button").click()


def slide(output, number: int, key: str) -> None:
    output.find_elements(By.CSS_SELECTOR, ".noUi-handle")[number].send_keys(key)


@pytest.fixture(scope="module")
def page(lab, driver, notebook, run_all, screenshot):
    """The scratch notebook, opened in JupyterLab and run from its menu."""
    import nbformat

    nbformat.write(notebook, lab.root / "scratch.ipynb")
    run_all("scratch.ipynb")
    try:
        until(driver, lambda: len(outputs(driver)) == len(notebook.cells) - 1 and all(map(picture, outputs(driver))),
              "all widgets")
    finally:
        screenshot("page")
    return driver


def test_explorer(page, screenshot):
    explorer = outputs(page)[0]
    start = picture(explorer)
    assert "P(next token | the text so far), temperature 1, all of" in start
    screenshot("explorer-start", explorer)

    press(explorer, "sample next")
    until(page, lambda: picture(explorer) != start, "a sampled token")
    sampled = picture(explorer)
    press(explorer, "greedy")
    until(page, lambda: picture(explorer) != sampled, "a greedy token")
    press(explorer, "undo")
    until(page, lambda: picture(explorer) == sampled, "one token taken back")

    slide(explorer, 0, Keys.ARROW_LEFT * 5)
    until(page, lambda: "temperature 0.5" in picture(explorer), "the temperature to fall")
    slide(explorer, 1, Keys.ARROW_RIGHT * 4)
    until(page, lambda: "the 4 likeliest of" in picture(explorer), "top-k to be 4")
    screenshot("explorer-sharpened", explorer)

    field = explorer.find_element(By.CSS_SELECTOR, "input[type='text']")
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys("Where is <b>SF</b>?" + Keys.ENTER)
    until(page, lambda: "b\n" in picture(explorer) and ">" in picture(explorer), "the typed text, its tags as text")
    screenshot("explorer-typed", explorer)


def test_word_by_word(page, screenshot):
    animation = outputs(page)[1]
    assert "Step 1 of 10. Input: “SF”. Target: “usually”." in picture(animation)
    slide(animation, 0, Keys.ARROW_RIGHT * 3)
    until(page, lambda: "Step 4 of 10. Input: “SF usually refers to”. Target: “San”." in picture(animation), "step 4")
    screenshot("word-by-word-4", animation)
    play(animation)
    until(page, lambda: "Step 10 of 10" in picture(animation), "the animation to play to its end")
    screenshot("word-by-word-end", animation)


def test_word_by_word_of_a_conversation(page, screenshot):
    animation = outputs(page)[2]
    assert "× prompt: read, not a target" in picture(animation) and "Mean loss of the targets" in picture(animation)
    screenshot("word-by-word-conversation", animation)
    last = picture(animation)
    assert re.search(r"Step (\d+) of \1\b", last)
    play(animation)  # from the last step it begins again
    until(page, lambda: picture(animation) != last, "the animation to begin again")
    play(animation)  # stops it: what comes now is the slider's doing
    slide(animation, 0, Keys.HOME)
    until(page, lambda: re.search(r"Step 1 of", picture(animation)), "the first step")
    assert "part of the prompt: no loss" in picture(animation)


def test_loss_mask(page, screenshot):
    mask = outputs(page)[3]
    start = picture(mask)
    screenshot("loss-mask", mask)
    press(mask, "everything")
    until(page, lambda: "as in pre-training" in picture(mask), "everything to be trained on")
    press(mask, "answer without its end")
    until(page, lambda: "never learns to stop" in picture(mask), "the end token left out")
    press(mask, "answer and its end")
    until(page, lambda: picture(mask) == start, "the first mask again")
    assert mask.find_element(By.CSS_SELECTOR, "[title*='not trained on']")


def test_one_update(page, screenshot):
    update = outputs(page)[4]
    assert "Update 1, from 4 sampled answers, baseline: none, learning rate 1:" in picture(update)
    screenshot("one-update", update)
    press(update, "take the step")
    until(page, lambda: "Update 2" in picture(update), "the step to be taken")
    reward, baseline, samples = map(Select, update.find_elements(By.TAG_NAME, "select"))
    samples.select_by_visible_text("all: the exact gradient")
    until(page, lambda: "from all sequences (the exact gradient)" in picture(update), "the exact gradient")
    samples.select_by_visible_text("1")
    baseline.select_by_visible_text("leave-one-out")
    until(page, lambda: "draw at least two samples" in picture(update), "the reason why not")
    samples.select_by_visible_text("64")
    until(page, lambda: "from 64 sampled answers, baseline: leave-one-out" in picture(update), "leave-one-out")
    slide(update, 0, Keys.ARROW_RIGHT * 2)
    until(page, lambda: "learning rate 1.5" in picture(update), "the learning rate to rise")
    press(update, "start again")
    until(page, lambda: "Update 1" in picture(update), "the first update")
    screenshot("one-update-end", update)


def test_beta_slider(page, screenshot):
    slider = outputs(page)[5]
    assert "beta = 1: p*(a) = p_ref(a) exp(R(a) / 1) / Z" in picture(slider)
    screenshot("beta-slider", slider)
    slide(slider, 0, Keys.END)
    until(page, lambda: "the optimum is the reference" in picture(slider), "beta to be infinite")
    slide(slider, 0, Keys.HOME)
    until(page, lambda: "the best sequence takes all" in picture(slider), "beta to be 0")


def test_kl_map(page, screenshot):
    kl = outputs(page)[6]
    assert "times beta = 0.1 the reward loses" in picture(kl) and "<|end|>" in picture(kl)
    screenshot("kl-map", kl)
    slide(kl, 0, Keys.END)
    until(page, lambda: "times beta = 1 the reward loses" in picture(kl), "beta to be 1")


def test_group_viewer(page, screenshot):
    viewer = outputs(page)[7]
    assert "Mean reward 0.28. GRPO" in picture(viewer) and "<b>" in picture(viewer)
    screenshot("group", viewer)
    press(viewer, "Dr. GRPO")
    until(page, lambda: "and 1/L" in picture(viewer), "the other scheme")
    press(viewer, "2")
    until(page, lambda: "Mean reward 0.53" in picture(viewer), "a reward turned over")
    screenshot("group-dr", viewer)
    viewer.find_element(By.TAG_NAME, "select").send_keys("2")
    until(page, lambda: "teaches nothing" in picture(viewer), "the group of equals")


def test_clip_explorer(page, screenshot):
    clip = outputs(page)[8]
    assert "ratio 1.00, clip from 0.80 to 1.20" in picture(clip) and "pushed up" in picture(clip)
    slide(clip, 1, Keys.ARROW_RIGHT * 6)
    until(page, lambda: "ratio 1.30" in picture(clip) and "The slope is 0" in picture(clip), "the clip to hold the token")
    slide(clip, 3, Keys.ARROW_RIGHT * 4)
    until(page, lambda: "clip from 0.80 to 1.40" in picture(clip) and "pushed up" in picture(clip), "a higher edge")
    screenshot("clip", clip)


def test_gae_slider(page, screenshot):
    gae = outputs(page)[9]
    assert "lambda = 0.95" in picture(gae)
    slide(gae, 0, Keys.HOME)
    until(page, lambda: "lambda = 0: each token is judged by the critic's change of mind" in picture(gae), "lambda 0")
    slide(gae, 0, Keys.END)
    until(page, lambda: "lambda = 1: each token is judged by all that came after it" in picture(gae), "lambda 1")
    screenshot("gae", gae)


def test_dpo_margin(page, screenshot):
    margin = outputs(page)[10]
    assert "margin h = 0.00 nats" in picture(margin) and "ordered not at all" in picture(margin)
    slide(margin, 1, Keys.ARROW_LEFT * 4)
    until(page, lambda: "log-ratio −2.00 chosen" in picture(margin) and "ordered wrong" in picture(margin), "chosen to fall")
    slide(margin, 2, Keys.ARROW_LEFT * 10)
    until(page, lambda: "Both answers have become less likely" in picture(margin), "both to fall")
    slide(margin, 0, Keys.END)
    until(page, lambda: "beta 2:" in picture(margin), "beta to rise")
    Select(margin.find_element(By.TAG_NAME, "select")).select_by_visible_text("IPO")
    until(page, lambda: "wider than this loss asks for" in picture(margin), "IPO")
    images = margin.find_elements(By.TAG_NAME, "img")
    assert len(images) == 2 and all(int(image.get_property("naturalWidth")) > 300 for image in images)
    screenshot("dpo-margin", margin)


def test_replay(page, screenshot):
    replay = outputs(page)[11]
    assert "Step 2 of 2: 'use the key'. This is a good step. Answer: open." in picture(replay)
    slide(replay, 0, Keys.HOME)
    until(page, lambda: "This is a wrong step. Answer: it is locked." in picture(replay), "the first step")
    assert "a <b>door</b>" in picture(replay)
    screenshot("replay", replay)
    play(replay)
    until(page, lambda: "Step 2 of 2" in picture(replay), "the episode to play to its end")


def test_frontier(page, screenshot):
    (frontier,) = [output for output in outputs(page) if "on the frontier" in picture(output).lower()]
    assert "Not on the frontier: <b>." in picture(frontier)
    screenshot("frontier", frontier)
    press(frontier, "far")
    press(frontier, "<b>")
    until(page, lambda: "Every method shown" in picture(frontier), "two methods to go")
    drawn = lambda: frontier.find_element(By.TAG_NAME, "img").get_attribute("src")  # noqa: E731
    before = drawn()
    press(frontier, "√KL")
    until(page, lambda: drawn() != before, "the other axis")
    images = frontier.find_elements(By.TAG_NAME, "img")
    assert len(images) == 2 and int(images[0].get_property("naturalWidth")) > 700
    press(frontier, "near")
    until(page, lambda: "No method is shown." in picture(frontier), "the last one to go")


@pytest.fixture(scope="module")
def saved(notebook, tools):
    """The notebook as it is committed: run without a front end, and no reference to a live widget."""
    nbclient = pytest.importorskip("nbclient")
    notebook = copy.deepcopy(notebook)
    nbclient.NotebookClient(notebook, timeout=300, startup_timeout=300).execute()
    return tools.without_widgets(notebook)


def test_saved_notebook_in_jupyterlab(lab, driver, saved, screenshot):
    """Opened and not run, in a JupyterLab that does not trust it yet: the pictures are there, with their colours."""
    import nbformat

    nbformat.write(saved, lab.root / "saved.ipynb")
    driver.get(lab.url("saved.ipynb"))

    def shown():
        return driver.find_elements(By.CSS_SELECTOR, ".jp-RenderedHTMLCommon.jp-OutputArea-output")

    until(driver, lambda: len(shown()) == len(saved.cells) - 1, "all pictures")
    assert "Chain rule" in shown()[0].text and "trained on" in shown()[3].text
    colours = {chip.value_of_css_property("background-color") for chip in shown()[3].find_elements(By.TAG_NAME, "span")}
    assert "rgba(220, 235, 248, 1)" in colours
    for i, output in enumerate(shown()):
        screenshot(f"saved-{i}", output)


def test_render(saved, tools, tmp_path):
    import nbformat

    nbformat.write(saved, tmp_path / "saved.ipynb")
    paths = tools.render(tmp_path / "saved.ipynb", tmp_path / "page.png")
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and int.from_bytes(data[20:24], "big") <= 2000
