"""A web page on which a person tries what a run has learnt: `--mode=demo`.

It knows no task: what it asks for are the `fields` of the task's `Predictor`, and what it shows is
what `write_predictions` wrote.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import datetime
import importlib.util
import os
import pathlib
import re
import shutil
from typing import Any

from etils import epath
import jax
import ml_collections

from crossattn_jax import tasks
from crossattn_jax.data import samples
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import demo_html, errors, loop, messages

# Bytes of a file that is given on the page.
MAX_FILE_SIZE = 32 * 2**20
_MOST_EXAMPLES = 12
_LONGEST_NAME = 60  # Of a file.
# What the page itself makes files of.
_TYPED = {'text': '.txt', 'drawing': '.json'}


def check_installed() -> None:
  """Refuses to go on without Gradio.

  Raises:
    ConfigError: it is not installed.
  """
  if importlib.util.find_spec('gradio') is None:
    raise config_lib.ConfigError(
      "--mode=demo needs Gradio, which is not installed: pip install 'crossattn_jax[demo]', or "
      "pip install -e '.[demo]' in a clone of this repository"
    )


def serve(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None,
  output: epath.Path,
  examples: epath.Path | None = None,
  *,
  host: str = '127.0.0.1',
  port: int | None = None,
) -> None:
  """Shows the page until the program is stopped.

  Args:
    config: of the experiment.
    workdir: of the run; None where `config.weights` says what to predict with.
    output: a local folder; see `Demo`.
    examples: what `--input` may be; its first files are offered on the page.
    host: the address that is listened at; by default this machine's own, which no other reaches.
    port: a free one from 7860 on by default.

  Raises:
    ConfigError: Gradio is not installed, or the config cannot be run.
    FileNotFoundError: there are no such examples, or no weights.
  """
  check_installed()
  with open_demo(config, workdir, output, examples) as demo:
    demo.launch(host, port)


@contextlib.contextmanager
def open_demo(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None,
  output: epath.Path,
  examples: epath.Path | None = None,
) -> Iterator['Demo']:
  """Loads what the page needs; the arguments are those of `serve`."""
  experiment = loop.setup_prediction(config, workdir)
  if examples is not None:
    experiment.task.Predictor.find_inputs(examples)
  with jax.set_mesh(experiment.mesh):
    variables = loop.load_variables(experiment, workdir)
    predictor = experiment.task.Predictor(experiment.task, variables)
  yield Demo(predictor, experiment.mesh, output, examples)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What is shown of one prediction.

  Attributes:
    html: of the record, or what else is to say.
    pictures: files, one of each of the predictor's `shown_files`; None where there is none.
    files: all that was written.
  """

  html: str
  pictures: Sequence[str | None]
  files: Sequence[str] = ()


class Demo:
  """The page of one predictor.

  Each start of the program has a folder of its own in the output folder, named by the time. There
  `uploads/` is the page's, and each prediction has a numbered folder: what was given, and in
  `predictions/` what `--mode=predict` writes. Nothing is written elsewhere.
  """

  def __init__(
    self,
    predictor: tasks.Predictor,
    mesh: jax.sharding.Mesh,
    output: epath.Path,
    examples: epath.Path | None = None,
  ):
    self._predictor, self._mesh, self._count = predictor, mesh, 0
    started = datetime.datetime.now().strftime('%Y-%m-%d_%H-%M-%S')
    self._folder = pathlib.Path(output).absolute() / started
    self._examples = examples
    self._last: tuple[Sequence[Any], Answer] | None = None

  def launch(self, host: str = '127.0.0.1', port: int | None = None, wait: bool = True) -> str:
    """Serves the page.

    Args:
      host: that is listened at.
      port: likewise.
      wait: until the program is stopped.

    Returns:
      The page's address.
    """
    uploads = self._folder / 'uploads'
    uploads.mkdir(parents=True)
    # Gradio reads them when it is imported or asked. Nothing is told to its makers.
    os.environ |= {'GRADIO_TEMP_DIR': str(uploads), 'GRADIO_ANALYTICS_ENABLED': 'False'}
    blocks = self.blocks()
    _, address, _ = blocks.launch(
      server_name=host,
      server_port=port,
      share=False,
      inbrowser=False,
      quiet=True,
      prevent_thread_lock=True,
      ssr_mode=False,
      max_file_size=MAX_FILE_SIZE,
      allowed_paths=[str(self._folder)],
      footer_links=[],
      theme=_theme(),
      css=demo_html.STYLE,
    )
    messages.say(f'{address} shows {self._title}; files go to {self._folder}; Ctrl-C ends it')
    if wait:
      blocks.block_thread()
    return address

  def blocks(self) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio as gr

    fields = self._predictor.fields
    with gr.Blocks(title=self._title, analytics_enabled=False) as blocks:
      gr.HTML(self._about(), elem_classes='about')
      with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
          inputs = [_component(field) for field in fields]
          # What is dropped is looked at once; words and strokes, when a person is ready.
          triggers = [
            component.submit if field.kind == 'text' else component.change
            for component, field in zip(inputs, fields, strict=True)
            if field.kind != 'drawing'
          ]
          if places := self._predictor.num_places:
            looking = gr.Slider(
              0, places, 0, step=1, label='Place that looks: by rows; 0 as the model has it'
            )
            inputs.append(looking)
            triggers.append(looking.release)
          if any(field.kind in _TYPED for field in fields):
            triggers.append(gr.Button('Predict', variant='primary').click)
          if rows := self._example_rows():
            gr.Examples(
              rows, inputs[: len(rows[0])], label='Examples', examples_per_page=_MOST_EXAMPLES
            )
        with gr.Column(scale=3, min_width=300):
          pictures = [
            gr.Image(
              label=kind,
              show_label=False,
              visible=False,
              elem_classes='picture',
              buttons=['download', 'fullscreen'],
            )
            for kind in self._predictor.shown_files
          ]
          shown = gr.HTML(demo_html.hint(), elem_classes='result')
          files = gr.File(label='files', visible=False, file_count='multiple', interactive=False)

      def answer(*values: Any) -> list[Any]:
        result = self.answer(values[: len(fields)], *values[len(fields) :])
        return [
          result.html,
          *(gr.update(value=path, visible=path is not None) for path in result.pictures),
          gr.update(value=list(result.files), visible=bool(result.files)),
        ]

      gr.on(
        triggers,
        answer,
        inputs,
        [shown, *pictures, files],
        preprocess=False,
        show_progress='minimal',
        trigger_mode='always_last',
        api_name='predict',
      )
    return blocks

  def answer(self, values: Sequence[Any], looking: int = 0) -> Answer:
    """What the page shows once something is given.

    Args:
      values: of the fields: texts, and what Gradio says of files. None or '' where nothing is given
        yet.
      looking: see `tasks.Predictor`.
    """
    if not all(values):
      return Answer(demo_html.hint(), [None] * len(self._predictor.shown_files))
    # Of several that are dropped at once, each one's change asks.
    if self._last is None or self._last[0] != (values, looking):
      self._count += 1
      self._predictor.looking = int(looking)
      self._last = (values, looking), self._answer(values)
    return self._last[1]

  def _answer(self, values: Sequence[Any]) -> Answer:
    none = [None] * len(self._predictor.shown_files)
    folder = self._folder / str(self._count)
    try:
      given = self._predictor.input_of(self._store(values, folder))
      output = folder / 'predictions'
      # The mesh is ambient in one thread, and Gradio has several.
      with jax.set_mesh(self._mesh):
        (record,) = self._predictor.write_predictions(given, epath.Path(output), 'each')
    except errors.USER_ERRORS as error:
      return Answer(demo_html.error(errors.message(error).replace(f'{folder}/', '')), none)
    return Answer(
      demo_html.record(record, str(folder)).replace(f'{folder}/', ''),
      [record.get(kind) for kind in self._predictor.shown_files],
      [str(path) for path in sorted(output.rglob('*')) if path.is_file()],
    )

  def _store(self, values: Sequence[Any], folder: pathlib.Path) -> dict[str, epath.Path]:
    """Puts what is given into a folder for each field, all under the same name."""
    stored, stem = {}, None
    for field, value in zip(self._predictor.fields, values, strict=True):
      place = epath.Path(folder / field.name)
      place.mkdir(parents=True)
      if field.kind in _TYPED:
        stored[field.name] = place / f'{field.name}{_TYPED[field.kind]}'
        stored[field.name].write_text(value)
        continue
      # Hidden files are not found in folders, and too long names are refused.
      given = re.sub(r'[^\w.-]', '_', value['orig_name'])[-_LONGEST_NAME:].lstrip('.')
      name = pathlib.Path(given or field.name)
      stem = stem or name.stem
      stored[field.name] = place / f'{stem}{name.suffix}'
      shutil.copyfile(value['path'], stored[field.name])
    return stored

  def _example_rows(self) -> list[list[str]]:
    """What the page offers to click, a row of values of the first fields each."""
    task, rows = self._predictor.task, []
    given = self._examples or samples.offered(task.config.task.name, task.config.dataset.name)
    if given is None:
      return []
    inputs, _ = self._predictor.find_inputs(epath.Path(given))
    for source in tasks.evenly_spread(inputs, _MOST_EXAMPLES):
      if self._predictor.fields[0].kind == 'text':
        rows += [[line] for line in pathlib.Path(*source.paths).read_text().splitlines() if line]
      else:
        rows.append(list(source.paths))
    return rows[:_MOST_EXAMPLES]

  @property
  def _title(self) -> str:
    return self._predictor.task.config.model.name

  def _about(self) -> str:
    config = self._predictor.task.config
    return demo_html.about(
      config.model.name,
      f'{config.task.name.replace("_", " ")}, trained on {config.dataset.name}',
      self._predictor.task.class_names,
    )


def _component(field: tasks.Field) -> Any:
  """What asks for a field."""
  import gradio as gr

  if field.kind == 'text':
    return gr.Textbox(label=field.label)
  if field.kind == 'sound':
    return gr.Audio(label=field.label, sources=['upload'], type='filepath', buttons=['download'])
  if field.kind == 'file':
    return gr.File(label=field.label, file_types=list(field.extensions))
  if field.kind == 'drawing':
    return gr.HTML(
      '',
      label=field.label,
      html_template=demo_html.canvas(field.label),
      js_on_load=demo_html.CANVAS_SCRIPT,
      elem_classes='canvas',
    )
  return gr.Image(label=field.label, sources=['upload', 'clipboard'], type='filepath', height=300)


def _theme() -> Any:
  """A plain theme with the system's fonts: none is fetched from the network."""
  import gradio as gr

  return gr.themes.Default(
    primary_hue='indigo',
    font=('system-ui', 'sans-serif'),
    font_mono=('ui-monospace', 'monospace'),
  )
