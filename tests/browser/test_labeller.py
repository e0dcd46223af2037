"""The labeller in a real JupyterLab: clicks and keys, two tabs on one file, a kernel that is killed, odd text."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
ActionChains = pytest.importorskip("selenium.webdriver").ActionChains

from course_lib import preferences

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

ODD = ("<script>window.hacked = 1</script><b>bold</b>", "<img src=x onerror='window.hacked = 1'>", "😀 👩‍🔬 naïve 日本",
       "שלום עולם, 42!")
CELL = """import sys; sys.path.insert(0, {root!r})
import os; open({name!r} + '.pid', 'w').write(str(os.getpid()))
from course_lib.preferences import Item
from course_lib.widgets import Labeller
pairs = [Item(f'question {{n}}', (f'good {{n}}', f'bad {{n}}')) for n in range({pairs})]
odd = Item('Is <i>this</i> text? שלום', {odd!r})
Labeller(pairs + [odd], 'labels-{file}.jsonl', 'ann')"""


@pytest.fixture
def labeller(request, lab, driver, run_all, until):
    """`labeller(name, file)` opens a new notebook that labels into a file, in the current tab; the file is the test's own."""
    nbformat = pytest.importorskip("nbformat")
    file = request.node.name

    def start(name: str, pairs: int = 4) -> Session:
        name = f"{file}-{name}"
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        source = CELL.format(root=str(ROOT), name=name, pairs=pairs, odd=ODD, file=file)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=metadata)
        nbformat.write(notebook, lab.root / f"{name}.ipynb")
        session = Session(driver, until, lab.root, name, lab.root / f"labels-{file}.jsonl")
        run_all(f"{name}.ipynb")
        until(lambda: "labelled" in session.text(), "the labeller")
        return session

    yield start
    while len(driver.window_handles) > 1:
        driver.switch_to.window(driver.window_handles[-1])
        driver.close()
    driver.switch_to.window(driver.window_handles[0])


class Session:
    """One notebook in one browser tab, and the file that it labels into."""

    def __init__(self, driver, until, root, name, path) -> None:
        self.driver, self.until, self.root, self.name, self.path = driver, until, root, name, path
        self.tab = driver.current_window_handle

    def output(self):
        return self.driver.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-vbox")

    def text(self) -> str:
        return self.output().find_element(By.CSS_SELECTOR, ".widget-html-content").text

    def button(self, label: str):
        (found,) = [b for b in self.output().find_elements(By.TAG_NAME, "button") if b.text == label]
        return found

    def field(self):
        return self.output().find_element(By.CSS_SELECTOR, "input[type='text']")

    def labels(self) -> list:
        return preferences.read(self.path)

    def shows(self, prompt: str) -> None:
        """Wait for an item; then for as long as a person needs at least to see it."""
        self.until(lambda: prompt in self.text(), prompt)
        time.sleep(0.5)

    def first(self) -> str:
        """The answer that stands first on the screen."""
        return self.text().split("\n1\n" if "\n1\n" in self.text() else "\n1 ", 1)[1].split("\n")[0].strip()

    def switch(self) -> None:
        self.driver.switch_to.window(self.tab)


def preferred(label) -> str:
    return label.item.answers[label.order[0][0]]


def test_buttons_and_keys(labeller, screenshot, driver):
    session = labeller("clicks")
    session.shows("question 0")
    screenshot("labeller-pair", session.output())
    wanted = [session.first()]
    session.button("1").click()
    session.shows("question 1")
    assert [preferred(label) for label in session.labels()] == wanted

    wanted.append(session.first())
    session.field().send_keys("1")
    session.shows("question 2")
    session.field().send_keys("=")
    session.shows("question 3")
    session.field().send_keys("u")
    session.shows("question 2")
    assert [preferred(label) for label in session.labels()] == wanted
    session.field().send_keys("s")
    session.shows("question 3")
    session.button("undo").click()
    session.shows("question 2")
    wanted.append(session.first())
    session.button("1").send_keys(Keys.SPACE)  # as those do who reach the buttons with the Tab key
    session.shows("question 3")
    assert [preferred(label) for label in session.labels()] == wanted
    assert driver.switch_to.active_element.text == "1"  # the focus stays, for the next one


def test_a_double_click_labels_one_item(labeller, driver):
    session = labeller("double")
    session.shows("question 0")
    ActionChains(driver).double_click(session.button("1")).perform()
    session.shows("question 1")
    time.sleep(1)
    assert len(session.labels()) == 1 and "question 1" in session.text()


def test_odd_text_is_text_and_a_ranking_by_keys(labeller, screenshot, driver):
    session = labeller("odd", pairs=1)
    session.shows("question 0")
    session.field().send_keys("s")
    session.shows("Is <i>this</i> text? שלום")
    assert all(answer in session.text() for answer in ODD)
    inside = session.output().find_element(By.CSS_SELECTOR, ".widget-html-content")
    assert not inside.find_elements(By.CSS_SELECTOR, "script, img, i")
    assert driver.execute_script("return window.hacked === undefined")
    style = "const s = getComputedStyle(arguments[0]); return [s.direction, s.unicodeBidi]"
    directions = {}
    for element in inside.find_elements(By.CSS_SELECTOR, "[dir='auto']"):
        directions[element.text] = driver.execute_script(style, element)
    assert directions[ODD[3]] == ["rtl", "isolate"] and directions[ODD[2]] == ["ltr", "isolate"]
    screenshot("labeller-odd", session.output())

    session.field().send_keys("42")
    session.until(lambda: "place 2" in session.text(), "two places")
    screenshot("labeller-ranking", session.output())
    session.field().send_keys("13")
    session.until(lambda: "Everything is labelled" in session.text(), "the end")
    screenshot("labeller-end", session.output())
    made = session.labels()[-1]
    assert made.order == tuple((made.shown[place],) for place in (3, 1, 0, 2)) and made.item.answers == ODD


def test_labels_survive_a_killed_kernel(labeller, run_all, screenshot):
    session = labeller("killed")
    session.shows("question 0")
    session.button("1").click()
    session.shows("question 1")
    session.field().send_keys("1")
    session.shows("question 2")
    before = session.labels()
    old = (session.root / f"{session.name}.pid").read_text()
    os.kill(int(old), signal.SIGKILL)
    session.path.write_bytes(session.path.read_bytes() + b'{"schema": 1, "id": "cut o')  # worse: a power cut within a line

    run_all(f"{session.name}.ipynb")
    session.until(lambda: (session.root / f"{session.name}.pid").read_text() not in ("", old), "a new kernel")
    session.shows("question 2")
    session.until(lambda: "cut off after 26 bytes" in session.text(), "the torn line to be said")
    screenshot("labeller-torn", session.output())
    session.button("1").click()
    session.shows("question 3")
    made = session.labels()
    assert made[:2] == before and [label.item.prompt for label in made] == ["question 0", "question 1", "question 2"]
    assert b"cut o" in preferences.aside(session.path).read_bytes()


def test_two_tabs_do_not_clobber_each_other(labeller, driver, screenshot):
    left = labeller("left", pairs=8)
    left.shows("question 0")
    driver.switch_to.new_window("tab")
    right = labeller("right", pairs=8)
    right.shows("question 0")
    assert len({(left.root / f"{s.name}.pid").read_text() for s in (left, right)}) == 2  # two kernels

    right.button("1").click()
    right.shows("question 1")
    right.button("1").click()
    right.shows("question 2")
    left.switch()
    left.button("= as good").click()  # its screen is behind: question 0 once more, and both labels stay
    left.shows("question 2")
    left.button("1").click()
    left.shows("question 3")
    left.button("undo").click()
    left.shows("question 2")
    right.switch()
    right.button("1").click()
    right.shows("question 3")
    left.switch()
    left.button("undo").click()
    left.shows("question 3")  # the left tab's tie on question 0 is gone; the right tab's label of it is not
    prompts = [label.item.prompt for label in right.labels()]
    assert prompts == ["question 0", "question 1", "question 2"]
    lines = left.path.read_bytes().splitlines()
    assert len(lines) == 7 and all(json.loads(line)["schema"] == 1 for line in lines)
    screenshot("labeller-two-tabs", left.output())
