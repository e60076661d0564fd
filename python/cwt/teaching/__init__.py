"""Teaching: asks a large model for rationales of a question file, and keeps those that are right.

config    TeachConfig: everything that can be chosen
prompts   the prompt styles; one template file each in prompts/
teacher   the protocol of a teacher: messages in, one completion out
client    one request to an OpenAI-compatible server, and its answer
retries   further tries after a request that failed for a passing reason
server    a teacher behind such a server
local     a teacher that is a transformers model on this machine
grading   the verdict on one completion
journal   what was asked, answered and paid, on disk before anything else happens
budget    the running total of tokens, money and time, and its limits
workers   one run: workers that ask, grade and write down
run       teach(config, out): the whole of it
"""

from cwt.teaching.config import TeachConfig
from cwt.teaching.run import TeachResult, teach
from cwt.teaching.teacher import Completion, Teacher, TeacherError

__all__ = ["Completion", "TeachConfig", "TeachResult", "Teacher", "TeacherError", "teach"]
