"""The page in Gradio, and the server that shows it. Nothing else imports Gradio.

The page asks for nothing from the network: fonts are the system's, Gradio's reports of usage
are off, and a header tells the browser to load nothing from elsewhere.
"""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while Gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import fastapi
import gradio as gr
import uvicorn

from fsdit.errors import FsditError
from fsdit.page import downloads, fragments, session
from fsdit.page.session import Pictures
from fsdit.sampling.generator import Generator

_HERE = Path(__file__).parent
_CANVAS = '<canvas width="280" height="280" aria-label="Draw here"></canvas>'
_COLOUR = '<label>Colour <input type="color" value="#000000"></label>'
_TAKE_DRAWING = "(drawing, supports) => [document.querySelector('canvas').toDataURL(), supports]"
_WIPE = "() => document.querySelector('canvas').wipe()"
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
_QUEUE = 16  # visitors who wait for samples; more are turned away
_SESSIONS = 64  # visitors whose supports are kept


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serves the page until the process is interrupted or terminated."""
    page.state_session_capacity = _SESSIONS
    page.queue(max_size=_QUEUE, default_concurrency_limit=1, api_open=False)
    server = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=session.MAX_FILE_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(
            font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
        ),
        css_paths=_HERE / "page.css",
    )
    # uvicorn repeats the signal that ended it, with the handlers of before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(
            _with_policy(server),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )


def _with_policy(server: Callable) -> Callable:
    """The ASGI application with a header by which a browser loads nothing from elsewhere."""

    async def answer(scope: Any, receive: Callable, send: Callable) -> None:
        async def send_with_policy(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [
                    *event.get("headers", ()),
                    (b"content-security-policy", _POLICY),
                ]
            await send(event)

        await server(scope, receive, send_with_policy)

    return answer


def build(
    generator: Generator,
    model: str,
    overrides: Mapping[str, str],
    examples: Mapping[str, tuple[Path, ...]],
) -> gr.Blocks:
    """The page of one model.

    model, overrides: what the page was started with. examples: sets of supports by name.
    """
    visit = _Visit(generator, model, overrides)
    with gr.Blocks(title=f"fsdit: {model}", analytics_enabled=False) as page:
        gr.Markdown(_introduction(generator))
        state = gr.State(session.no_supports(generator), time_to_live=3600)
        with gr.Row():
            with gr.Column(min_width=300):
                _inputs(visit, state, examples)
            with gr.Column(min_width=300):
                _outputs(visit, state)
    return page


def _introduction(generator: Generator) -> str:
    spec, name = generator.spec, generator.config.name
    colours = "greyscale" if spec.channels == 1 else "colour"
    return (
        f"# New samples from a few pictures\nGive one to five pictures of one "
        f"thing, the *supports*. The model `{name}` (step {generator.step}, {spec.image_size} x "
        f"{spec.image_size}, {colours}) makes new pictures of it, also where it never saw such a "
        "thing in training."
    )


class _Visit:
    """Answers to what a visitor does; each returns new values of components."""

    def __init__(self, generator: Generator, model: str, overrides: Mapping[str, str]):
        self.generator, self._model, self._overrides = generator, model, overrides

    def supports(self, images: Pictures, wrong: str = "") -> tuple[Pictures, str, str]:
        """(state, the supports as the model sees them, message)."""
        shown = fragments.picture_list(images, "support", session.MAX_SUPPORTS)
        return images, shown, fragments.message(wrong)

    def changed(self, change: Callable[[], Pictures], before: Pictures) -> tuple[Any, str, str]:
        try:
            return self.supports(change())
        except FsditError as error:
            return self.supports(before, str(error))

    def add_files(self, files: list[str] | None, supports: Pictures) -> tuple[Any, str, str, None]:
        """Also empties the list of files, which are deleted."""
        change = functools.partial(session.with_files, self.generator, supports, files or [])
        answer = self.changed(change, supports)
        for file in files or []:
            Path(file).unlink(missing_ok=True)
        return *answer, None

    def add_drawing(self, drawing: str, supports: Pictures) -> tuple[Any, str, str]:
        change = functools.partial(session.with_drawing, self.generator, supports, drawing)
        return self.changed(change, supports)

    def take_example(self, files: tuple[Path, ...], supports: Pictures) -> tuple[Any, str, str]:
        fresh = session.no_supports(self.generator)
        change = functools.partial(session.with_files, self.generator, fresh, files)
        return self.changed(change, supports)

    def generate(
        self, supports: Pictures, *sent: float
    ) -> Iterator[tuple[str, str, str]]:  # (samples, status or message, links)
        nothing = fragments.picture_list(supports[:0], "sample", 0)
        try:
            request = session.checked(*sent)
            yield nothing, fragments.status("The first samples with new settings take longer."), ""
            made = supports[:0]
            for made in session.sampled(self.generator, supports, request):
                shown = fragments.picture_list(made, "sample", request.num_samples)
                done = fragments.status(f"{len(made)} of {request.num_samples}")
                yield shown, done, ""
            files = downloads.files(
                self.generator, self._model, self._overrides, supports, request, made
            )
            yield shown, done, fragments.links(files)
        except FsditError as error:
            yield nothing, fragments.message(str(error)), ""


def _inputs(visit: _Visit, state: gr.State, examples: Mapping[str, tuple[Path, ...]]) -> None:
    colour = _COLOUR if visit.generator.spec.channels == 3 else ""
    _, first, _ = visit.supports(state.value)
    with gr.Row():
        with gr.Column(min_width=260):
            gr.Markdown("**Draw** with mouse or finger")
            gr.HTML(
                html_template=_CANVAS + colour,
                js_on_load=(_HERE / "canvas.js").read_text(),
                elem_id="drawing",
            )
            with gr.Row():
                add = gr.Button("Add drawing", variant="primary", size="sm", min_width=100)
                wipe = gr.Button("Wipe", size="sm", min_width=60)
        with gr.Column(min_width=260):
            gr.Markdown("**Supports, as the model sees them**")
            seen = gr.HTML(first, elem_id="supports")
            with gr.Row():
                remove = gr.Button("Remove last", size="sm", min_width=100)
                invert = gr.Button("Swap dark and light", size="sm", min_width=120)
            wrong = gr.HTML()
    files = gr.File(label="or drop picture files", file_count="multiple", height=120)
    if examples:
        gr.Markdown("or take an example, which the model never saw in training")
    with gr.Row():
        buttons = {
            taken: gr.Button(name, icon=taken[0], size="sm", min_width=120)
            for name, taken in examples.items()
        }

    outputs = [state, seen, wrong]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    drawing = gr.Textbox(visible=False)
    add.click(visit.add_drawing, [drawing, state], outputs, js=_TAKE_DRAWING, **private).then(
        None, js=_WIPE
    )
    wipe.click(None, js=_WIPE)
    files.upload(visit.add_files, [files, state], [*outputs, files], **private)
    for taken, button in buttons.items():
        button.click(functools.partial(visit.take_example, taken), [state], outputs, **private)
    for button, change in ((remove, session.without_last), (invert, session.inverted)):
        button.click(
            lambda s, change=change: visit.supports(change(s)), [state], outputs, **private
        )


def _outputs(visit: _Visit, state: gr.State) -> None:
    sampling = visit.generator.config.sampling
    with gr.Row():
        count = gr.Slider(1, session.MAX_SAMPLES, 16, step=1, label="Number of samples")
        guidance = gr.Slider(
            0, session.MAX_GUIDANCE, sampling.guidance_scale, step=0.1, label="Guidance"
        )
    with gr.Row():
        most = max(session.MAX_STEPS, sampling.num_steps)
        steps = gr.Slider(1, most, sampling.num_steps, step=1, label="Steps")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=session.MAX_SEED)
    with gr.Row():
        start = gr.Button("Generate", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=80)
    status = gr.HTML()
    samples = gr.HTML(elem_id="samples")
    links = gr.HTML(elem_id="downloads")
    running = start.click(
        visit.generate,
        [state, count, guidance, steps, seed],
        [samples, status, links],
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="once",
    )
    stop.click(None, cancels=[running])
