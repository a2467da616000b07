"""Visual question answering with trimmers: training them, and what trimming costs and gains."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_model
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vleff.smarttrim.execution import recorded, running, trimmers_of
from vleff.smarttrim.objective import Predictions, TaskLoss
from vleff.smarttrim.pretrained import trimmer_parameters
from vleff.smarttrim.record import RunRecord
from vleff.smarttrim.report import Kept, kept_by
from vleff.smarttrim.trainer import SmartTrimTrainer
from vleff.smarttrim.trimming import Trimmers
from vleff.training.checkpoints import check_settings

Collate = Callable[[Sequence[Any]], Mapping[str, Tensor]]
ROUNDS = 5


@dataclass(frozen=True)
class AnsweringTraining:
    """How a model with trimmers is trained.

    Attributes:
        steps: optimizer steps.
        batch: questions a step.
        learning_rate: of the model, the highest, after a linear warm-up; it falls linearly to 0.
        trimmer_learning_rate: of the trimmers, likewise.
        warmup: the share of steps that warm up.
        weight_decay: of the model's matrices; trimmers have none.
        save_steps: steps between two checkpoints.
        shuffled: whether questions come in random order; if not, in theirs.
        seed: of the order, of dropout and of what is dropped.
    """

    steps: int
    batch: int = 32
    learning_rate: float = 3e-5
    trimmer_learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    save_steps: int = 200
    shuffled: bool = True
    seed: int = 0


class _AnsweringTrainer(SmartTrimTrainer):
    def __init__(self, *args: Any, training: AnsweringTraining, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.training = training

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model: Any = self.model
            self.optimizer = torch.optim.AdamW(_groups(model, self.training))
        return self.optimizer

    def _get_train_sampler(self, *args: Any) -> Any:
        questions: Any = self.train_dataset
        return super()._get_train_sampler(*args) if self.training.shuffled else SequentialSampler(questions)


def train_trimmed(
    model: PreTrainedModel,
    questions: Sequence[Any],
    collate: Collate,
    training: AnsweringTraining,
    folder: str | Path,
    task_loss: TaskLoss | None = None,
    predictions: Predictions | None = None,
    bfloat16: bool = False,
    quiet: bool = False,
    workers: int = 0,
) -> PreTrainedModel:
    """Trains model and trimmers with transformers' Trainer: AdamW, gradients clipped at norm 1.

    Checkpoints go to `folder`; a call with the same folder and training goes on where an interrupted one stopped.

    Args:
        model: attached.
        questions: anything with a length whose items `collate` takes.
        collate: makes a batch with labels.
        task_loss, predictions: of `training_loss`.
        bfloat16: matrix products are computed in bfloat16 (autocast), as fast again where the processor has it.
        quiet: without a progress bar.
        workers: processes that make batches; with 0 the training process does.

    Returns:
        `model` itself, trained, in eval mode.

    Raises:
        ValueError: there are no questions, the model has no trimmers, or the folder is that of another training.
    """
    if not len(questions):
        raise ValueError("argument 'questions': expected at least one, got none")
    config = trimmers_of(model)[0].execution.config
    check_settings(Path(folder), {**asdict(training), "questions": len(questions), "config": _plain(config.to_dict())})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.warmup * training.steps),
        save_steps=training.save_steps,
        save_total_limit=1,
        logging_steps=max(1, training.steps // 20),
        remove_unused_columns=False,
        report_to=[],
        bf16=bfloat16,
        seed=training.seed,
        disable_tqdm=quiet,
        dataloader_num_workers=workers,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = _AnsweringTrainer(
        model,
        arguments,
        train_dataset=questions,
        data_collator=collate,
        task_loss=task_loss,
        predictions=predictions,
        training=training,
    )
    last = get_last_checkpoint(str(folder))
    if last is not None and last.endswith(f"-{training.steps}"):  # finished: Trainer would go one step further
        load_model(model, f"{last}/model.safetensors")
    else:
        trainer.train(resume_from_checkpoint=last)
    return model.eval()


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered, and with how much.

    Attributes:
        correct: bool [questions].
        kept: what trimming kept over all questions; None for a model at full capacity.
    """

    correct: Tensor
    kept: Kept | None = None

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.correct.float().mean())


def answer(
    model: PreTrainedModel,
    questions: Sequence[Any],
    collate: Collate,
    batch: int = 32,
    mode: str = "gathered",
    watch: Callable[[int, Mapping[str, Tensor], list[RunRecord]], None] | None = None,
    quiet: bool = False,
) -> Answers:
    """Answers questions, and compares with what is known.

    Args:
        model: attached or not; it answers in eval mode.
        collate: makes batches whose labels, float [batch, answers], are highest at the right answers; a question
            whose labels are all 0 counts as answered wrongly.
        mode: of `running`: "gathered" trims, "full" does not; of no meaning without trimmers.
        watch: is called as watch(number of the first question, inputs, records of the run) after each batch.
        quiet: without a progress bar.
    """
    attached = any(isinstance(module, Trimmers) for module in model.modules())
    training, correct, runs = model.training, [], []
    model.eval()
    try:
        with torch.inference_mode(), running(model, mode) if attached else nullcontext():
            for first in track(range(0, len(questions), batch), "answering", transient=True, disable=quiet):
                numbers = range(first, min(first + batch, len(questions)))
                batch_inputs = collate([questions[number] for number in numbers])
                inputs = {name: value.to(model.device) for name, value in batch_inputs.items()}
                labels = inputs.pop("labels")
                run: list[RunRecord] = []
                with ExitStack() as stack:
                    if attached:
                        run = stack.enter_context(recorded(model))
                    logits = model(**inputs).logits
                chosen = labels.gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
                correct.append((chosen > 0) & (chosen == labels.amax(1)))
                runs += run
                if watch is not None:
                    watch(first, inputs, run)
    finally:
        model.train(training)
    return Answers(torch.cat(correct), kept_by(model, runs) if runs else None)


def seconds_a_question(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], modes: Sequence[str] = ("full", "gathered")
) -> dict[str, float]:
    """The time that a question takes in each mode: medians over rounds in which the modes take turns.

    Args:
        model: attached, in eval mode.
        batches: inputs, with or without labels; each round takes all of them.
    """
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    count = sum(len(batch["pixel_values"]) for batch in inputs)

    def ask(mode: str) -> None:
        with torch.inference_mode(), running(model, mode):
            for batch in inputs:
                model(**batch)

    times = seconds_in_turns({mode: partial(ask, mode) for mode in modes})
    return {mode: seconds / count for mode, seconds in times.items()}


def seconds_in_turns(contenders: Mapping[str, Callable[[], Any]], quiet: bool = True) -> dict[str, float]:
    """The time that each contender takes: medians over rounds in which they take turns.

    Args:
        quiet: without a progress bar.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in track(range(ROUNDS + 1), "timing", transient=True, disable=quiet):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:  # the first round packs weights
                times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def _groups(model: PreTrainedModel, training: AnsweringTraining) -> list[dict[str, Any]]:
    own = {id(parameter) for parameter in trimmer_parameters(model).values()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    trimmers = [parameter for parameter in model.parameters() if id(parameter) in own]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    rest = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "lr": training.learning_rate, "weight_decay": training.weight_decay},
        {"params": rest, "lr": training.learning_rate, "weight_decay": 0.0},
        {"params": trimmers, "lr": training.trimmer_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
