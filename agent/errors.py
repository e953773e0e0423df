"""The agent's branch of the one error tree: what is wrong, and what to do about it."""

from __future__ import annotations

from sandbox_engine import SandboxError, UsageError


class AgentError(SandboxError):
    """The root of what goes wrong in the agent itself."""


class LlmError(AgentError):
    """No model gave an answer that can be used; no API key is ever part of the text."""


class UnfitAnswerError(LlmError):
    """A model did answer, and what it said cannot be used.

    `content` is what it said, `complaint` a text about it that can be sent back to a model.
    """

    def __init__(self, problem: str, *, remedy: str, content: str, complaint: str) -> None:
        super().__init__(problem, remedy=remedy)
        self.content = content
        self.complaint = complaint


class AnswerError(AgentError):
    """A model's answer does not hold the one object that was asked for.

    `complaint` names all that is wrong with it at once, in words to be sent back to the model.
    """

    def __init__(self, problem: str, *, remedy: str, complaint: str) -> None:
        super().__init__(problem, remedy=remedy)
        self.complaint = complaint


class ScriptError(UsageError):
    """A script for the scripted model says something that cannot be meant."""
