"""What the page of `demo` says, as HTML: records of any task as tables, hints, errors."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

# Numbers between 0 and 1 that are drawn as bars.
_SHARES = ('probability', 'score', 'share')
_MOST_CLASSES = 20

STYLE = """
.gradio-container { width: 100% !important; max-width: 1080px !important;
  margin: 0 auto !important; }
.about h1 { font-size: 1.5rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.about p { color: var(--neutral-500); margin: 0.2rem 0 0; }
.label-clear-button { display: none; }
.image-frame img, .picture img { width: 100%; height: 100%; object-fit: contain; }
.picture img { min-height: 8rem; max-height: 40rem; }
.canvas svg { display: block; width: 100%; max-width: 320px; aspect-ratio: 1; background: #fff;
  border: 1px solid var(--border-color-primary); border-radius: 4px; margin: 0 auto;
  cursor: crosshair; touch-action: none; }
.canvas path { fill: none; stroke: #000; stroke-width: 3; stroke-linecap: round;
  stroke-linejoin: round; }
.canvas p { display: flex; justify-content: space-between; margin: 0.3rem 0; font-size: 0.85rem;
  color: var(--neutral-500); }
.canvas button { all: unset; cursor: pointer; text-decoration: underline; }
.result h2 { font-size: 1rem; font-weight: 600; margin: 0.6rem 0 0.2rem; }
.result table { width: 100%; border-collapse: collapse; border: 0 !important; font-size: 0.95rem; }
.result tr { border: 0 !important; }
.result th, .result td { padding: 0.35rem 0.6rem 0.35rem 0 !important; border: 0 !important;
  text-align: left; vertical-align: baseline; }
.result th { font-weight: 400; color: var(--neutral-500); }
.result td { border-top: 1px solid var(--border-color-primary) !important;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.result td:first-child { overflow-wrap: normal; }
.result .share { display: flex; align-items: baseline; gap: 0.5rem; min-width: 6rem; }
.result .share i { flex: 1; }
.result .share b { display: block; height: 0.6rem; min-width: 1px; border-radius: 0.3rem;
  background: var(--color-accent); }
.result .problem { border-left: 4px solid #d9480f; padding: 0.6rem 0.8rem; border-radius: 4px;
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.result .hint { color: var(--neutral-500); padding: 3rem 1rem; text-align: center; }
.result .place { color: var(--neutral-500); font-size: 0.8rem; margin-top: 0.6rem;
  overflow-wrap: anywhere; }
"""

# Draws what the pointer does; the value is strokes as QuickDraw has them, JSON of [[x...], [y...]].
CANVAS_SCRIPT = """
let strokes = [], line = null;
const show = () => element.querySelector('path').setAttribute('d', strokes.map(([x, y]) =>
  'M' + x.map((_, i) => x[i] + ' ' + y[i]).join('L') + (x.length > 1 ? '' : 'z')).join(''));
const add = (event) => {
  const box = element.querySelector('svg').getBoundingClientRect();
  line[0].push(Math.round(255 * (event.clientX - box.left) / box.width));
  line[1].push(Math.round(255 * (event.clientY - box.top) / box.height));
  show();
};
const keep = () => {
  props.value = strokes.length ? JSON.stringify(strokes) : '';
  // The template is drawn again, without the lines.
  setTimeout(show);
};
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('svg')) return;
  event.preventDefault();
  strokes.push(line = [[], []]);
  add(event);
});
window.addEventListener('pointermove', (event) => { if (line) add(event); });
window.addEventListener('pointerup', () => { if (line) { line = null; keep(); } });
element.addEventListener('click', (event) => {
  if (event.target.closest('button')) { strokes = []; keep(); }
});
"""


def canvas(label: str) -> str:
  """A place to draw, for `CANVAS_SCRIPT`."""
  return (
    f'<p><span>{html.escape(label)}</span><button type="button">clear</button></p>'
    f'<svg viewBox="0 0 255 255" role="img" aria-label="{html.escape(label)}"><path/></svg>'
  )


def about(model: str, task: str, class_names: Sequence[str]) -> str:
  """The head of the page."""
  rest = len(class_names) - _MOST_CLASSES
  names = ', '.join(class_names[:_MOST_CLASSES]) + (f' and {rest} more' if rest > 0 else '')
  # A single class is all that the task looks for.
  known = f'<p>It knows: {html.escape(names)}</p>' if len(class_names) > 1 else ''
  return f'<h1>{html.escape(model)}</h1><p>{html.escape(task)}</p>{known}'


def hint() -> str:
  """What stands where results will be."""
  return (
    '<div class="hint">The result appears here. The first one takes longer: the model is compiled.'
    '</div>'
  )


def error(text: str) -> str:
  """What went wrong."""
  return f'<div class="problem" role="alert">{html.escape(text)}</div>'


def record(values: Mapping[str, Any], folder: str) -> str:
  """A record of `predict`: its lists and its groups of numbers, as tables; and where files are."""
  parts = []
  for name, value in values.items():
    if isinstance(value, list):
      table = _table(value) if value else '<p>none</p>'
      parts.append(f'<h2>{html.escape(_words(name))}</h2>{table}')
  if groups := {name: value for name, value in values.items() if isinstance(value, Mapping)}:
    names = dict.fromkeys(key for group in groups.values() for key in group)
    parts.append(
      _table(
        [
          {'': _words(key)} | {name: group.get(key, '') for name, group in groups.items()}
          for key in names
        ]
      )
    )
  parts.append(f'<p class="place">Written to {html.escape(folder)}</p>')
  return ''.join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
  columns = [name for name in rows[0] if name != 'index']
  head = ''.join(f'<th>{html.escape(_words(name))}</th>' for name in columns)
  body = ''.join(f'<tr>{"".join(_cell(name, row[name]) for name in columns)}</tr>' for row in rows)
  return f'<table><tr>{head}</tr>{body}</table>'


def _cell(name: str, value: Any) -> str:
  if name in _SHARES and 0 <= value <= 1:
    bar = f'<i><b style="width: {100 * value:.1f}%"></b></i>'
    return f'<td><span class="share">{bar}{value:.1%}</span></td>'
  return f'<td>{html.escape(_text(value))}</td>'


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, list):
    return ', '.join(f'{x:.0f}' if isinstance(x, float) else str(x) for x in value)
  return str(value)


def _words(name: str) -> str:
  # A path is no word.
  return name if '/' in name else name.replace('_', ' ')
