from crossattn_jax.data.scenes import captions


def test_captions_of_a_scene_say_what_its_objects_are():
  items = [
    captions.Item('star', 'red', 'plain'),
    captions.Item('disc', 'orange', 'striped'),
    captions.Item('star', 'blue', 'dotted'),
  ]
  own = 'a small red star and a large orange striped disc on sand; the red star is left of it'
  assert captions.captions(own, items) == (
    own,
    'a plain red star in front of an orange disc and a blue star',
    'three shapes on sand: one disc and two stars, red, orange and blue',
    'sand with an orange disc, a blue star and a red star',
    'there is a dotted blue star, a plain red star and a striped orange disc',
  )
  assert captions.captions('a small red star on snow', items[:1])[1:3] == (
    'a plain red star in front of snow',
    'one shape on snow: one star, red',
  )
