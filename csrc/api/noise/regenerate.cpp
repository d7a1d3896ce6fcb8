// See regenerate.h.
#include "noise/regenerate.h"

namespace torch_ssam::detail {

Recipe Recipe::mirrored() const {
  Recipe other = *this;
  other.noise.negate = !noise.negate;
  return other;
}

std::shared_ptr<const Recipe> recipe_of(const at::Tensor& generator, const ops::Noise& noise) {
  const auto recipe = std::make_shared<Recipe>(Recipe{ops::empty_like(generator).copy_(generator), noise});
  if (noise.draw_offset != 0) ops::advance_(recipe->generator, noise.draw_offset);
  recipe->noise.draw_offset = 0;
  return recipe;
}

void add(const Members& members, const Recipe& recipe) {
  ops::perturb_from_clean_(members.params, members.params, recipe.generator, members.places, recipe.noise);
}

at::Tensor without(const at::Tensor& param, std::int64_t place, const Recipe& recipe) {
  const Recipe mirrored = recipe.mirrored();
  return ops::perturbed(param.detach(), mirrored.generator, place, mirrored.noise);
}

}  // namespace torch_ssam::detail
