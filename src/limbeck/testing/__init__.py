"""Fakes of every part, for tests of your own parts: small, exact, and honest about the temperature.

    teacher = BigramTeacher(log_probs_at_one)         scores by a table, at any temperature
    engine = BigramEngine(log_probs_at_one)           samples from a table, reproducibly
    learner = CountingLearner(log_probs_at_one)       publishes the table that the engine samples from
    limbeck.train(recipe, teacher=teacher, engine=engine, learner=learner, task=FakeTask({...}), observers=[Recorder()])

None of them imports torch. The guide *Parts of your own* shows them at work.
"""

from limbeck.testing.engine import BigramEngine
from limbeck.testing.learner import CountingLearner, FixedPolicy
from limbeck.testing.objective import PlainReverseKL
from limbeck.testing.observer import Recorder
from limbeck.testing.task import FakeTask
from limbeck.testing.teacher import BigramTeacher, random_bigrams

__all__ = [
    "BigramEngine",
    "BigramTeacher",
    "CountingLearner",
    "FakeTask",
    "FixedPolicy",
    "PlainReverseKL",
    "Recorder",
    "random_bigrams",
]
