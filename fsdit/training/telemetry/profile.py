"""A window of steps under JAX's profiler, for TensorBoard's profile plugin."""

from pathlib import Path

import jax

from fsdit.config import ProfileConfig


class ProfileWindow:
    """Writes DIRECTORY/plugins/profile/TIME/HOST.xplane.pb. open: whether the profiler runs."""

    def __init__(self, config: ProfileConfig, directory: Path, last: int):
        """directory: TensorBoard's. last: the last step of the run."""
        first = config.start_step
        self._steps = range(first, min(first + config.num_steps, last + 1)) if first else range(0)
        self.directory, self.open = directory, False

    def begins(self, step: int) -> bool:
        """Whether to start before this step, which may be in the middle of a resumed window."""
        return step in self._steps and not self.open

    def ends(self, step: int) -> bool:
        """Whether to stop before this step."""
        return self.open and step not in self._steps

    def start(self) -> None:
        """Starts the profiler."""
        options = jax.profiler.ProfileOptions()
        # Every call of every Python function would slow the loop and swell the file.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self.directory, profiler_options=options)
        self.open = True

    def stop(self) -> None:
        """Stops the profiler, and says where the profile is."""
        jax.profiler.stop_trace()
        self.open = False
        print(f"profiled: tensorboard --logdir={self.directory}", flush=True)
