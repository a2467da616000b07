"""Trains each student by its Trainer, whole and killed: train_worker.py FOLDER, under torchrun.

Of the killed runs the last process dies during step 5, once for each method, and the whole run with it; called again,
it goes on from the checkpoint of step 4.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from methods.distributed.students import TRAINED, trainer_for
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

RANK = int(os.environ["RANK"])


class Kill(TrainerCallback):
    """Kills this process at the beginning of step 5, unless it has done so before."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4 and RANK == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for kind in ("whole", "killed"):
        for method in TRAINED:
            own = folder / kind / method
            weights = own / f"weights-{RANK}.pt"
            if weights.exists():
                continue
            callbacks = [Kill(folder / f"{method} was killed")] if kind == "killed" else []
            trainer = trainer_for(method, own, 4, callbacks)
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(own)) if own.is_dir() else None)
            torch.distributed.barrier()
            torch.save(trainer.model.state_dict(), weights)
            (own / f"log-{RANK}.json").write_text(json.dumps(trainer.state.log_history))
            torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
