"""The pretext tasks: one paper, one file; `TASKS` is the whole list.

TASKS[name](**fields) -> a task; its fields are its configuration; its docstring explains them
"""

from collections.abc import Mapping

from ssl_core.task import PretextTask
from ssl_core.tasks.amdim import AMDIM
from ssl_core.tasks.bag_of_words import BagOfWords
from ssl_core.tasks.colorization import Colorization
from ssl_core.tasks.context_encoder import ContextEncoder
from ssl_core.tasks.context_prediction import ContextPrediction
from ssl_core.tasks.cpc_image import CPCImage
from ssl_core.tasks.denoising_autoencoder import DenoisingAutoencoder
from ssl_core.tasks.exemplar_cnn import ExemplarCNN
from ssl_core.tasks.exemplar_triplet import ExemplarTriplet
from ssl_core.tasks.image_position import ImagePosition
from ssl_core.tasks.jigsaw import Jigsaw
from ssl_core.tasks.masked_autoencoder import MaskedAutoencoder
from ssl_core.tasks.moco import MoCo
from ssl_core.tasks.online_bag_of_words import OnlineBagOfWords
from ssl_core.tasks.relative_transformation import RelativeTransformation
from ssl_core.tasks.rotation import Rotation
from ssl_core.tasks.simclr import SimCLR
from ssl_core.tasks.spatial_bag_of_words import SpatialBagOfWords
from ssl_core.tasks.split_brain import SplitBrain
from ssl_core.tasks.supervised import Supervised
from ssl_core.tasks.variational_autoencoder import VariationalAutoencoder

TASKS: Mapping[str, type[PretextTask]] = {
    "rotation": Rotation,
    "relative_transformation": RelativeTransformation,
    "context_prediction": ContextPrediction,
    "image_position": ImagePosition,
    "jigsaw": Jigsaw,
    "colorization": Colorization,
    "split_brain": SplitBrain,
    "variational_autoencoder": VariationalAutoencoder,
    "denoising_autoencoder": DenoisingAutoencoder,
    "context_encoder": ContextEncoder,
    "masked_autoencoder": MaskedAutoencoder,
    "bag_of_words": BagOfWords,
    "spatial_bag_of_words": SpatialBagOfWords,
    "online_bag_of_words": OnlineBagOfWords,
    "simclr": SimCLR,
    "moco": MoCo,
    "amdim": AMDIM,
    "cpc_image": CPCImage,
    "exemplar_cnn": ExemplarCNN,
    "exemplar_triplet": ExemplarTriplet,
    "supervised": Supervised,
}
"""Name in recipes -> task class."""
