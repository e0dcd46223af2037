# %% [markdown]
# # 09 · Agents: learning from their own mistakes, and from their answers
#
# *Lecture: 5. Direct Preference Optimization (UI-TARS); backup: deep research*
#
# > Give model to access browser and code execution environment. Create RL datasets that browsing and code execution.
#
# **You will be able to** say what changes when a language model takes many steps in an environment instead of giving one
# answer, turn an agent's mistakes into preference pairs, train on them by DPO, and say when the mistakes are worth more than
# their corrections.
#
# | | |
# | --- | --- |
# | time | about 4 minutes on two CPU cores, 2 minutes on a T4 (estimates, for a filled store) |
# | starts from | the base model of notebook 01 |
# | leaves behind | an agent and the studies of this notebook in the store, if they are not there yet |
#
# Two claims of the lecture are measured: wrong steps are useful as negatives, and SFT on corrected steps ignores them
# (C28); tools can be an RL environment (C29).

# %%
import html

import torch
from IPython.display import Markdown, display

from course_lib import artifacts, plots
from course_lib.checks import check
from course_lib.teach import show

# %%
def table(head, rows):
    """Show rows under a head as a table; model text is escaped."""
    def cell(value):
        return html.escape(" ".join(str(value).split())).replace("|", "&#124;")

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


def told(values, form="{:+.2f}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"

# %% [markdown]
# # Part 1 · An agent that fills in forms
#
# # Part 2 · A research agent that uses tools

# %% [markdown]
# ## Where this breaks
#
# ## Scale it up
#
# ## Recap

# %% [markdown]
# **References.** Rafailov et al., *Direct preference optimization: your language model is secretly a reward model*, 2023 ·
# Qin et al., *UI-TARS: pioneering automated GUI interaction with native agents*, 2025
