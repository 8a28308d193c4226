"""Small files of a run, which a full disk or a kill leaves as they were."""

from etils import epath


def replace_text(path: epath.Path, text: str) -> None:
  """Writes a file under another name first: it has what it had before, or all of the text."""
  replacement = path.with_name(path.name + '.tmp')
  replacement.write_text(text)
  replacement.replace(path)
