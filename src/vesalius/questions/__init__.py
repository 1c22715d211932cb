"""Questions that a probe is taught to answer: inputs, which of their places are asked about, and the true answers.

| name | asked of | the answer |
|---|---|---|
| `repeated` | every token of random rows, or of a store | whether it was there before; of random rows as often as not |
| `token_class` | every token of a text | word, continuation of one, number, punctuation, space |
| `previous_class`, `next_class` | every token of a text | the same of the token before, or after |
| `image_class` | every picture | its class |
| a file | every text, or every document or row of a store | its label |
| numbers or words | every document or row of a store | as given |

What belongs together (a row, a paragraph, a document, a picture, a group that the file names) has one group.
"""

from vesalius.questions.answered import Answered, answered
from vesalius.questions.asked import Question, question
from vesalius.questions.stored import Stored, stored

__all__ = ["Answered", "Question", "Stored", "answered", "question", "stored"]
