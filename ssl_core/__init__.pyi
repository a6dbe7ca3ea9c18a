from ssl_core.data.shards import Shards as Shards
from ssl_core.data.shards import write_shard as write_shard
from ssl_core.nn.encoders.spec import EncoderSpec as EncoderSpec
from ssl_core.probes.knn import knn as knn
from ssl_core.probes.linear import linear_probe as linear_probe
from ssl_core.probes.rank import rank_me as rank_me
from ssl_core.task import PretextTask as PretextTask
from ssl_core.task import TaskModel as TaskModel
from ssl_core.tasks import TASKS as TASKS
from ssl_core.train.checkpoint import save_model as save_model
from ssl_core.train.loop import Folder as Folder
from ssl_core.train.loop import pretrain as pretrain
from ssl_core.train.run import Optim as Optim
from ssl_core.train.run import Run as Run
from ssl_core.train.run import Runtime as Runtime
from ssl_core.train.run import Train as Train
from ssl_core.train.saved_model import load_model as load_model

PUBLIC: dict[str, str]
