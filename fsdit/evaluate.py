"""Few-shot evaluation of a run's EMA weights.

    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/test

Writes drawings.png, results.json and report.html to the output directory. A setting that
does not change what was trained is a flag here too, --config.model.encoder.location=DIR
where the frozen weights have moved.
"""

from pathlib import Path

from absl import flags

from fsdit import program

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Classes to draw.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the result.", required=True)
_EPISODES = flags.DEFINE_integer("episodes", 256, "Episodes to draw, one image each.")
_OVERRIDES = program.define_overrides()
_SEED = flags.DEFINE_integer("seed", 0, "Decides the noise of the drawings.")


def main(argv: list[str]) -> None:
    del argv
    from fsdit.evaluation import protocol as protocols
    from fsdit.evaluation import report
    from fsdit.training.run import load_run

    workdir = Path(_WORKDIR.value)
    run = load_run(workdir, _OVERRIDES())
    protocol = protocols.make_protocol(run.config, _SPLIT.value, _EPISODES.value, _SEED.value)
    drawings = protocols.draw_episodes(run, protocol)
    scores = protocols.retrieval(run.config, protocol, drawings)
    picture = protocols.draw_variations(run, protocol, rows=12, columns=5)
    output = Path(_OUTPUT.value)
    report.write(output, run.config.name, run.step, protocol, scores, picture)

    print(f"step {run.step}: {protocol.episodes} drawings of {protocol.split} classes")
    print("top-1 retrieval              look-alikes right   very class")
    for name, value in scores["top1"].items():
        print(f"  {name:<26} {value:17.3f} {scores['top1_exact'][name]:12.3f}")
    for label, name in (("picture", "drawings.png"), ("report", "report.html")):
        print(f"{label}: {output / name}")


if __name__ == "__main__":
    program.run(main)
