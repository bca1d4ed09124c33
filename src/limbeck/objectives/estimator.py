"""One block of tokens: what is measured, an estimate of the divergence, and its gradient.

Every term of the loss has a gradient of one of two shapes with respect to x = logits / T, where a pull is a tensor over
tokens of the vocabulary (`divergences.py`):

    dense    pull - p * sum(pull)    over the whole vocabulary
    sparse   the same, of a pull that is 0 but on a few tokens: those of the support, and the sampled one

On a support S that is a function of the prefix only, with w the truncated importance ratio:

    L_t = sum_{v in S} sg[pull_v] log p_v + 1[y not in S] sg[w gain(y)] log p(y)
    D_t ~ sum_{v in S} value_v            + 1[y not in S] w value(y) / p(y)

Both have the expectation of the sum over all tokens, for any S and objective, where no ratio reaches the cap.

Shape legend: N tokens, C tokens of one block, V vocabulary, K support size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.divergences import DenseBlock, dense_function
from limbeck.objectives.groups import GroupTerms
from limbeck.objectives.logits import dot, log_softmax_, top
from limbeck.objectives.loss import Loss
from limbeck.objectives.targets import Dense, Grouped, Measured, Target, Tokens, TopK


class Estimator:
    """Fills `measured` block by block, from the last token to the first."""

    def __init__(
        self,
        loss: Loss,
        temperature: float,
        tokens: Tokens,
        teacher: Target,
        measured: Measured,
        wants_grad: bool,
    ) -> None:
        self.loss, self.temperature, self.tokens, self.teacher = loss, temperature, tokens, teacher
        self.measured, self.wants_grad = measured, wants_grad
        self.dense = dense_function(loss.objective)
        self.groups: GroupTerms | None = None  # of a teacher with other tokens, before the first block
        self.future = DiscountedFuture(loss.discount, tokens.sequence_N, measured.objective.dtype)

    def gradient_(self, c: slice, logits_CV: Tensor, teacher_CV: Tensor | None, reference_CV: Tensor | None) -> Tensor:
        """[C, V] gradient of the sum of L_t with respect to x. Overwrites all logits."""
        measured, sampled_C1 = self.measured, self.tokens.sampled_N[c, None]
        logp_CV, p_CV = log_softmax_(logits_CV.div_(self.temperature))
        measured.student_logprob[c] = logp_CV.gather(1, sampled_C1)[:, 0]
        measured.student_entropy[c] = -dot(p_CV, logp_CV)
        to_reference_CV = self._reference_pull(c, p_CV, logp_CV, reference_CV)

        logq_CV = q_CV = None
        if teacher_CV is not None:
            logq_CV, q_CV = log_softmax_(teacher_CV.div_(self.temperature))
            self._measure_teacher(c, logp_CV, logq_CV, q_CV)
        elif self.groups is not None:
            measured.teacher_logprob[c] = self.groups.teacher_logprob_N[c]
        elif not isinstance(self.teacher, Dense | Grouped):
            measured.teacher_logprob[c] = self.teacher.logprobs_N[c]

        if self.loss.support == "full":
            assert logq_CV is not None
            assert q_CV is not None
            ratio_CV = logp_CV - logq_CV
            block = DenseBlock(p_CV, logp_CV, q_CV, logq_CV, ratio_CV, self._measure_reverse_kl(c, p_CV, ratio_CV))
            grad_CV, value_C = self._whole_vocabulary(block, to_reference_CV)
            coefficient_C = self._coefficient(c, value_C, None)
            if coefficient_C is not None:
                grad_CV.addcmul_(p_CV, coefficient_C[:, None], value=-1)
        else:
            if logq_CV is not None:
                self._measure_reverse_kl(c, p_CV, logp_CV - logq_CV)
            sparse = (
                self._partial_support(c, p_CV, logp_CV, logq_CV, to_reference_CV)
                if self.groups is None
                else self._of_groups(c, self.groups, to_reference_CV)
            )
            value_C = sparse.value_C
            coefficient_C = self._coefficient(c, value_C, sparse.gain_C)
            assert coefficient_C is not None
            grad_CV = _sparse_gradient(p_CV, sparse, coefficient_C)
        measured.objective[c] = value_C
        if self.wants_grad and coefficient_C is not None:
            grad_CV.scatter_add_(1, sampled_C1, coefficient_C[:, None])
        return grad_CV

    def _measure_teacher(self, c: slice, logp_CV: Tensor, logq_CV: Tensor, q_CV: Tensor) -> None:
        measured = self.measured
        assert measured.teacher_entropy is not None
        assert measured.overlap is not None
        measured.teacher_logprob[c] = logq_CV.gather(1, self.tokens.sampled_N[c, None])[:, 0]
        measured.teacher_entropy[c] = -dot(q_CV, logq_CV)
        k = min(self.loss.overlap_k, logp_CV.shape[1])
        ids_CK, teacher_CK = (top(x_CV, k)[1] for x_CV in (logp_CV, logq_CV))
        shared_C = (ids_CK[:, :, None] == teacher_CK[:, None, :]).any(dim=2).sum(dim=1)
        measured.overlap[c] = shared_C.to(measured.overlap.dtype) / k

    def _measure_reverse_kl(self, c: slice, p_CV: Tensor, ratio_CV: Tensor) -> Tensor:
        assert self.measured.reverse_kl is not None
        reverse_kl_C = self.measured.reverse_kl[c] = dot(p_CV, ratio_CV)
        return reverse_kl_C

    def _reference_pull(self, c: slice, p_CV: Tensor, logp_CV: Tensor, reference_CV: Tensor | None) -> Tensor | None:
        """[C, V] weight * (log p - log p_ref): the gain of the reference's reverse KL, which every term adds."""
        if reference_CV is None:
            return None
        assert self.measured.reference_kl is not None
        ratio_CV = logp_CV - log_softmax_(reference_CV.div_(self.temperature))[0]
        self.measured.reference_kl[c] = dot(p_CV, ratio_CV)
        return ratio_CV.mul_(self.loss.reference_weight)

    def _whole_vocabulary(self, block: DenseBlock, to_reference_CV: Tensor | None) -> tuple[Tensor, Tensor]:
        """[C, V] gradient and [C] value, without noise."""
        grad_CV, value_C = self.dense(block)
        if to_reference_CV is not None:
            mean_C = dot(block.p_CV, to_reference_CV)
            value_C = value_C + mean_C
            grad_CV.addcmul_(block.p_CV, to_reference_CV.sub_(mean_C[:, None]))
        return grad_CV, value_C

    def _partial_support(
        self, c: slice, p_CV: Tensor, logp_CV: Tensor, logq_CV: Tensor | None, to_reference_CV: Tensor | None
    ) -> _Sparse:
        """The tokens of the support exactly, and the sampled token for all others."""
        objective, sampled_C1 = self.loss.objective, self.tokens.sampled_N[c, None]
        ids_CK, logq_CK = self._support(c, logp_CV, logq_CV)
        p_CK, logp_CK = p_CV.gather(1, ids_CK), logp_CV.gather(1, ids_CK)
        logp_C, logq_C = self.measured.student_logprob[c], self.measured.teacher_logprob[c]
        weight_C, p_C = self._importance(c), p_CV.gather(1, sampled_C1)[:, 0]

        pull_CK = objective.pull(p_CK, logp_CK, logq_CK)
        value_CK = objective.value(p_CK, logp_CK, logq_CK)
        gain_C = objective.gain(logp_C, logq_C)
        tail_C = self._weight_over_p(c) * objective.value(p_C, logp_C, logq_C)
        if to_reference_CV is not None:
            reference_CK, reference_C = p_CK * to_reference_CV.gather(1, ids_CK), to_reference_CV.gather(1, sampled_C1)
            pull_CK, value_CK = pull_CK + reference_CK, value_CK + reference_CK
            gain_C = gain_C + reference_C[:, 0]
            tail_C = tail_C + weight_C * reference_C[:, 0]
        inside_C = (ids_CK == sampled_C1).any(dim=1)
        self._measure_support(c, p_CK, logq_CK, inside_C)
        return _Sparse(
            ids_CK=ids_CK,
            pull_CK=pull_CK,
            gain_C=torch.where(inside_C, 0.0, gain_C),
            value_C=value_CK.sum(dim=1) + torch.where(inside_C, 0.0, tail_C),
        )

    def _of_groups(self, c: slice, groups: GroupTerms, to_reference_CV: Tensor | None) -> _Sparse:
        """No token exactly; what a group pulls is added in `_coefficient`, for its weight is that of the group."""
        sampled_C1, gain_C, value_C = self.tokens.sampled_N[c, None], None, groups.value_N[c]
        if to_reference_CV is not None:
            gain_C = to_reference_CV.gather(1, sampled_C1)[:, 0]
            value_C = value_C + self._importance(c) * gain_C
        nothing_C0 = value_C[:, None][:, :0]
        return _Sparse(sampled_C1[:, :0], nothing_C0, torch.zeros_like(value_C) if gain_C is None else gain_C, value_C)

    def _measure_support(self, c: slice, p_CK: Tensor, logq_CK: Tensor, inside_C: Tensor) -> None:
        measured = self.measured
        if measured.support_student is None or measured.support_teacher is None or measured.support_sampled is None:
            return
        measured.support_student[c], measured.support_teacher[c] = p_CK.sum(dim=1), logq_CK.exp().sum(dim=1)
        measured.support_sampled[c] = inside_C.to(measured.support_sampled.dtype)

    def _support(self, c: slice, logp_CV: Tensor, logq_CV: Tensor | None) -> tuple[Tensor, Tensor]:
        """[C, K] ids and the teacher's log-probs of them. Nothing here may look at the sampled token."""
        support, teacher = self.loss.support, self.teacher
        if support == "sampled":
            nothing_C0 = self.measured.teacher_logprob[c, None][:, :0]
            return self.tokens.sampled_N[c, None][:, :0], nothing_C0
        if isinstance(teacher, TopK):
            return teacher.ids_NK[c], teacher.logprobs_NK[c]
        assert logq_CV is not None
        whose_CV = logp_CV if support == "student_top" else logq_CV
        ids_CK = top(whose_CV, min(self.loss.size, whose_CV.shape[1]))[1]
        return ids_CK, logq_CV.gather(1, ids_CK)

    def _coefficient(self, c: slice, value_C: Tensor, gain_C: Tensor | None) -> Tensor | None:
        """What multiplies log p(y_t): the sampled tail, the discounted future, minus the advantage."""
        terms = [] if gain_C is None else [gain_C]
        if self.loss.discount > 0:
            after_C = self.future.after(c, value_C)
            terms.append(self.loss.discount * (after_C if self.groups is None else after_C + self.groups.before_N[c]))
        if self.tokens.advantage_N is not None:
            terms.append(-self.tokens.advantage_N[c])
        if not terms:
            return None
        total_C = torch.stack(terms).sum(dim=0)
        # Where nothing is left to the sampled token, its weight does not matter, and may be unknown: NaN.
        coefficient_C = torch.where(total_C == 0, total_C, self._importance(c) * total_C)
        return coefficient_C if self.groups is None else coefficient_C + self.groups.coefficient_N[c]

    def _importance(self, c: slice) -> Tensor:
        """[C] w = min(p(y_t) / mu(y_t), cap)."""
        log_weight_C = self.measured.student_logprob[c] - self.tokens.behaviour_N[c]
        return log_weight_C.exp().clamp(max=self.loss.importance_cap)

    def _weight_over_p(self, c: slice) -> Tensor:
        """[C] w / p(y_t) = min(1 / mu(y_t), cap / p(y_t)): finite where p underflows, for mu does not."""
        capped_C = math.log(self.loss.importance_cap) - self.measured.student_logprob[c]
        return torch.minimum(-self.tokens.behaviour_N[c], capped_C).exp()


@dataclass(frozen=True, eq=False)
class _Sparse:
    """An estimate on a partial support. K = 0 for the sampled token alone."""

    ids_CK: Tensor
    pull_CK: Tensor
    gain_C: Tensor  # of the sampled token, 0 where it is in the support
    value_C: Tensor


def _sparse_gradient(p_CV: Tensor, sparse: _Sparse, coefficient_C: Tensor) -> Tensor:
    """pull - p * sum(pull), short of the sampled token's own entry of the pull. Overwrites `p_CV`."""
    total_C = coefficient_C + sparse.pull_CK.sum(dim=1)
    return p_CV.mul_(-total_C[:, None]).scatter_add_(1, sparse.ids_CK, sparse.pull_CK.to(p_CV.dtype))


class DiscountedFuture:
    """sum_{u > t} discount^(u-t-1) D_u within each token's sequence, for blocks that go from the last to the first."""

    def __init__(self, discount: float, sequence_N: Tensor, dtype: torch.dtype) -> None:
        self.discount, self.sequence_N = discount, sequence_N
        self.carried = torch.zeros((), dtype=dtype, device=sequence_N.device)  # from the token after the block
        self.carried_sequence = torch.full((), -1, device=sequence_N.device)

    def after(self, c: slice, value_C: Tensor) -> Tensor:
        """[C] of the block's tokens, given their own values. Takes a [C, C] matrix."""
        discount, sequence_C = self.discount, self.sequence_N[c]
        steps_C = torch.arange(len(value_C), device=value_C.device)
        ahead_CC = steps_C[None, :] - steps_C[:, None] - 1
        same_CC = (sequence_C[None, :] == sequence_C[:, None]) & (ahead_CC >= 0)
        decay_CC = torch.where(same_CC, discount ** ahead_CC.clamp(min=0).to(value_C.dtype), 0.0)
        until_end_C = (len(value_C) - 1 - steps_C).to(value_C.dtype)
        carried_C = torch.where(sequence_C == self.carried_sequence, discount**until_end_C * self.carried, 0.0)
        future_C = decay_CC @ value_C + carried_C
        self.carried, self.carried_sequence = value_C[0] + discount * future_C[0], sequence_C[0]
        return future_C
