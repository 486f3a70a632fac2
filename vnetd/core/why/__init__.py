"""Why a guest does not get through: its way hop by hop, each with what is right or wrong there."""

from vnetd.core.why.question import Answer, Question, Scene, Step, Word, free_address, question
from vnetd.core.why.way import answer

__all__ = ["Answer", "Question", "Scene", "Step", "Word", "answer", "free_address", "question"]
