"""Every setting of a run: typed, frozen, with its bounds, and readable without JAX.

The defaults are those of the miniImageNet experiment; an experiment file changes what it
needs. pydantic's dataclasses check types and bounds and parse the text of flags. A comment
above a setting, or behind it, says what it means and in which unit.
"""

from fsdit.config.bounds import Seed
from fsdit.config.problems import set_place, settings
from fsdit.config.settings.data import DataConfig as DataConfig
from fsdit.config.settings.data import FeaturesConfig as FeaturesConfig
from fsdit.config.settings.model import CodecConfig as CodecConfig
from fsdit.config.settings.model import EncoderConfig as EncoderConfig
from fsdit.config.settings.model import ModelConfig as ModelConfig
from fsdit.config.settings.samples import EvaluationConfig as EvaluationConfig
from fsdit.config.settings.samples import FlowConfig as FlowConfig
from fsdit.config.settings.samples import SamplingConfig as SamplingConfig
from fsdit.config.settings.training import CheckpointConfig as CheckpointConfig
from fsdit.config.settings.training import MeshConfig as MeshConfig
from fsdit.config.settings.training import OptimizerConfig as OptimizerConfig
from fsdit.config.settings.training import TrainConfig as TrainConfig
from fsdit.config.settings.watching import ProfileConfig as ProfileConfig
from fsdit.config.settings.watching import WatchdogConfig as WatchdogConfig


@settings
class Config:
    """All settings of a run. A flag sets one by its path: --config.data.batch_size=64."""

    name: str = ""  # of the run, in logs and reports; "": that of the dataset's folder
    seed: Seed = 0  # decides initialisation, order of data, noise, times and dropout
    data: DataConfig = DataConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()
    watchdog: WatchdogConfig = WatchdogConfig()


set_place("config", Config)
