"""The run page and the report: a reader of files, which knows nothing of models and imports no torch.

    runs.py           a folder of runs, and what each one's files say about it
    metrics.py        metrics.jsonl in columns, from a byte offset on
    rollouts.py       the recorded rollouts: an index, and one at a time with its tokens
    evaluations.py    the answers of evaluations: a list, and one at a time in full
    disagreement.py   where student and teacher disagree, over all recorded rollouts
    server.py         all of it over HTTP on this machine
    page.py           the page's files, in parts or in one piece
    report.py         the page with its data in one file
    plots.py          pictures for a paper
    clipping.py       what their axes show
    legend.py         and what is below them
    assets/           the page: plain modules and a style sheet, nothing to build

Whatever is missing or broken becomes a line under `problems`, and the rest is shown.
"""
