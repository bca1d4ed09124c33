"""From a recipe's view of a teacher to the view, and what a person should know of it: one entry in `VIEWS` a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.assemble.site import Site
from limbeck.config.teacher import LocalTeacherConfig, RemoteTeacherConfig, SeeingConfig
from limbeck.config.view import PromptConfig, PromptedViewConfig, RetokenizedViewConfig, SameViewConfig, ViewConfig
from limbeck.contract.tokenizers import check_same_tokenizer, check_tokenizers
from limbeck.errors import DataError, RecipeError
from limbeck.models.causal_lm import CausalLM, stop_ids_of
from limbeck.models.chat import name_of
from limbeck.models.head import Head
from limbeck.models.text import Names
from limbeck.protocols import TeacherView
from limbeck.records import ProbeResult, Prompt
from limbeck.teacher_views.prompted import PromptedView
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.relabelling import relabelling_of
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.same import SameView
from limbeck.teacher_views.spelling import Speller

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 4000  # characters of what a teacher sees
SHOWN_TOKENS = 10


def open_view(section: ViewConfig, site: Site, theirs: PreTrainedTokenizerBase | None) -> TeacherView:
    """`theirs` is the teacher's tokenizer; None where nobody gave it, and then it is the student's.

    Raises `RecipeError`, `ModelError`.
    """
    if theirs is None and isinstance(section, RetokenizedViewConfig):
        raise RecipeError(
            "teacher.view.kind = 'retokenized' of a teacher whose tokenizer is not known here. Give a local teacher, "
            "or one behind a URL with `tokenizer` = its model folder or hub name."
        )
    return VIEWS[type(section)](section, site, theirs or site.student.tokenizer)


def heads_as_seen(view: TeacherView, heads: Mapping[str, Head]) -> Mapping[str, Head]:
    """The teacher's output heads over the student's ids, by fingerprint."""
    return view.heads(heads) if isinstance(view, PromptedView) else heads


def seen_tokens(view: TeacherView, prompt: Prompt) -> Sequence[int]:
    """What the teacher sees of a prompt. Raises `DataError` where it cannot be rendered, or is nothing."""
    text = view.prompt_ids(prompt)
    if not text:
        raise DataError(f"prompt {prompt.id!r} has no tokens as the teacher sees it: give teacher.view a text.")
    return text


def texts_of(view: TeacherView, prompts: Sequence[Prompt], context: int | None, site: Site) -> list[Sequence[int]]:
    """What the teacher sees of each prompt. Raises `DataError` where one cannot be rendered, or leaves no room."""
    texts = [seen_tokens(view, prompt) for prompt in prompts]
    longest = site.recipe.rollout.max_tokens
    other = isinstance(view, RetokenizedView)  # nobody knows how many of its tokens a response will be
    for prompt, text in zip(prompts, texts, strict=True):
        if other and context is not None and len(text) >= context:
            raise DataError(
                f"prompt {prompt.id!r} has {len(text)} tokens of the teacher's, which leave no place for a response in "
                f"its context of {context}. Shorten teacher.view, or drop the row."
            )
        if not other and context is not None and len(text) + longest > context:
            raise DataError(
                f"prompt {prompt.id!r} has {len(text)} tokens as the teacher sees it, which with rollout.max_tokens = "
                f"{longest} are more than its context of {context}. Shorten teacher.view, drop the row, or lower "
                "rollout.max_tokens."
            )
    return texts


def example_of(view: TeacherView, prompts: Sequence[Prompt], text: Sequence[int], site: Site) -> list[ProbeResult]:
    """What the teacher sees of the first prompt, for a person to read; nothing where it sees what the student does."""
    if not isinstance(view, PromptedView | RetokenizedView):
        return []
    names = Names(view.prompts.tokenizer if isinstance(view, PromptedView) else view.tokenizer)
    seen = "".join(names(list(text)))
    shown = seen if len(seen) <= SHOWN else f"{seen[: SHOWN // 2]} ... {seen[-SHOWN // 2 :]}"
    results = [ProbeResult("teacher sees", f"of prompt {prompts[0].id!r}: {shown}", "its own prompt")]
    if isinstance(view, RetokenizedView):
        return results
    ours = Names(site.student.tokenizer)
    pairs = [f"{ours([a])[0]} is the teacher's {names([b])[0]}" for a, b in view.relabelling.pairs.items()]
    masked = [f"{ours([id_])[0]} is masked ({why})" for id_, why in view.relabelling.masked.items()]
    if pairs or masked:
        results.append(ProbeResult("special tokens of templates", "; ".join([*pairs, *masked]), "mapped, or masked"))
    return results


def _same(section: SameViewConfig, site: Site, theirs: PreTrainedTokenizerBase) -> TeacherView:
    return SameView()


def _prompted(section: PromptedViewConfig, site: Site, theirs: PreTrainedTokenizerBase) -> TeacherView:
    prompts = TeacherPrompts(section, site.student.tokenizer, theirs)
    stop_ids = stop_ids_of(site.student, site.recipe.rollout.stop_ids)
    view = PromptedView(prompts, relabelling_of(site.student.tokenizer, prompts.tokenizer, stop_ids))
    sampled = [id_ for id_ in view.relabelling.masked if id_ < site.student.vocabulary]
    if sampled:
        _refuse_where_biased(site, name_of(prompts.tokenizer), sampled)
    return view


def _refuse_where_biased(site: Site, teacher: str, masked: Sequence[int]) -> None:
    """Whether a position is masked depends on its sampled token. Raises `RecipeError` for what is then biased."""
    objective, names = site.recipe.objective, Names(site.student.tokenizer)
    tokens = ", ".join(repr(names([id_])[0]) for id_ in masked[:SHOWN_TOKENS])
    more = f" and {len(masked) - SHOWN_TOKENS} more" if len(masked) > SHOWN_TOKENS else ""
    what = (
        f"the teacher ({teacher}) has no token for {tokens}{more} of the student's, so positions at which the student "
        "says one are left out of the loss"
    )
    instead = "or take a teacher.view.template, or a teacher, that has such tokens."
    if objective.support not in ("sampled", "full"):
        raise RecipeError(
            f"{what}, but objective.support = {objective.support!r} would then be biased: whether a position counts "
            f"would depend on its sampled token. Set objective.support = 'sampled' or 'full', {instead}"
        )
    if objective.discount > 0:
        raise RecipeError(
            f"{what}, but objective.discount = {objective.discount} sums the divergences of later tokens. Set "
            f"objective.discount = 0, {instead}"
        )
    if objective.task_reward is not None:
        raise RecipeError(
            f"{what}, but objective.task_reward needs the reward of every sampled token, or its gradient is biased. "
            f"Remove it, {instead}"
        )
    if objective.reference is not None and objective.support == "sampled":
        raise RecipeError(
            f"{what}, but objective.reference with objective.support = 'sampled' needs every sampled token, or its "
            f"gradient is biased. Set objective.support = 'full', {instead}"
        )


def _retokenized(section: RetokenizedViewConfig, site: Site, theirs: PreTrainedTokenizerBase) -> TeacherView:
    prompts = TeacherPrompts(section, site.student.tokenizer, theirs)
    stop_ids = stop_ids_of(site.student, site.recipe.rollout.stop_ids)
    return RetokenizedView(Speller(site.student.tokenizer, stop_ids), Speller(prompts.tokenizer), prompts)


def has_other_tokens(section: SeeingConfig) -> bool:
    """Whether its vocabulary is its own: then nothing of it is compared token by token."""
    return isinstance(section.view, RetokenizedViewConfig)


def compare_models(site: Site, section: LocalTeacherConfig | RemoteTeacherConfig, lm: CausalLM) -> ProbeResult:
    """The teacher's tokenizer and head, or its head's, with the student's. Raises `ContractError`."""
    if has_other_tokens(section):
        return compare_tokenizers(site, section, lm.name, lm.tokenizer)
    own_prompt = isinstance(section.view, PromptConfig)
    return check_tokenizers(site.student, lm, section.same_chat_template, own_prompt=own_prompt)


def compare_tokenizers(
    site: Site, section: LocalTeacherConfig | RemoteTeacherConfig, name: str, theirs: PreTrainedTokenizerBase
) -> ProbeResult:
    """The teacher's tokenizer with the student's, where they have to be alike. Raises `ContractError`."""
    student = site.student
    if has_other_tokens(section):
        measured = f"{name}: {len(theirs)} tokens; {student.name}: {len(student.tokenizer)}"
        return ProbeResult("tokenizer", measured, "any: the bytes of texts are compared")
    own_prompt = isinstance(section.view, PromptConfig)
    return check_same_tokenizer(
        student.name, student.tokenizer, name, theirs, section.same_chat_template, own_prompt=own_prompt
    )


VIEWS: Mapping[type, Callable[[Any, Site, Any], TeacherView]] = {
    SameViewConfig: _same,
    PromptedViewConfig: _prompted,
    RetokenizedViewConfig: _retokenized,
}
