"""CrossModalAttentionDistillationLoss: the cross-modal attention of a student follows a teacher's."""

import torch
from torch import Tensor, nn

from vleff.ops.attention_distillation import attention_distillation

QueriesAndKeys = tuple[Tensor, Tensor]


class CrossModalAttentionDistillationLoss(nn.Module):
    """The cross-modal attention distillation of DiDE (arXiv 2112.08723, section 2.3), without attention maps.

    In both directions, text to image and image to text, attention is taken over the other modality only:

        A_text_to_image = softmax(Q_text K_image^T / sqrt(head_dim))
        A_image_to_text = softmax(Q_image K_text^T / sqrt(head_dim))
        loss = sum over directions of the mean over heads and queries of KL(A of the teacher || A of the student)

    A divergence sums over the keys of the query's sample; the mean is over all queries of the batch. Memory is
    linear in the number of tokens. The teacher is a constant.

    Args:
        average_padded: whether the text queries are those of the padded batch, so that padding counts in the mean
            as it does in the authors' code. By default all tokens are real ones.
    """

    def __init__(self, average_padded: bool = False) -> None:
        super().__init__()
        self.average_padded = average_padded

    def forward(
        self,
        teacher_text: QueriesAndKeys,
        teacher_image: QueriesAndKeys,
        student_text: QueriesAndKeys,
        student_image: QueriesAndKeys,
        text_offsets: Tensor,
        image_offsets: Tensor,
        max_text: int,
        max_image: int,
    ) -> Tensor:
        """The loss of one layer.

        Args:
            teacher_text, teacher_image: queries and keys, each [tokens, heads, head_dim], float32, bfloat16 or
                float16, without gradient; head_dim at most 256. A model of one tower is sliced by modality.
            student_text, student_image: likewise; as many heads, of any head_dim.
            text_offsets, image_offsets: int32 [batch + 1]: the tokens of sample b are the rows offsets[b] to
                offsets[b + 1].
            max_text, max_image: at least the longest sample's tokens.

            With `average_padded` the text queries are [batch * max_text, heads, head_dim], those of all positions
            of the padded batch, and max_text is its length; text_offsets then tell of the text's keys alone,
            which are without padding as always.

        Returns:
            float32 scalar; 0 if there are no queries or no keys.

        Raises:
            ValueError: the numbers of heads or of text queries do not fit, or the teacher requires grad.
            RuntimeError: as `vleff.ops.attention_distillation`.
        """
        teacher_heads, student_heads = teacher_text[0].shape[1], student_text[0].shape[1]
        if teacher_heads != student_heads:
            raise ValueError(
                f"student_text: expected as many heads as the teacher, {teacher_heads}, got {student_heads}: "
                "distil layers with equal numbers of heads"
            )
        text_query_offsets = text_offsets
        if self.average_padded:
            batch = text_offsets.shape[0] - 1
            for name, (queries, _) in (("teacher_text", teacher_text), ("student_text", student_text)):
                if queries.shape[0] != batch * max_text:
                    raise ValueError(
                        f"{name}: expected batch * max_text = {batch * max_text} queries, as average_padded is set, "
                        f"got {queries.shape[0]}"
                    )
            text_query_offsets = torch.arange(batch + 1, dtype=torch.int32, device=text_offsets.device) * max_text
        text_to_image = attention_distillation(
            teacher_text[0],
            teacher_image[1],
            student_text[0],
            student_image[1],
            text_query_offsets,
            image_offsets,
            max_text,
            max_image,
        )
        image_to_text = attention_distillation(
            teacher_image[0],
            teacher_text[1],
            student_image[0],
            student_text[1],
            image_offsets,
            text_offsets,
            max_image,
            max_text,
        )
        return _mean(text_to_image) + _mean(image_to_text)

    def extra_repr(self) -> str:
        return f"average_padded={self.average_padded}"


def _mean(divergences: Tensor) -> Tensor:
    return divergences.sum() / max(divergences.numel(), 1)
