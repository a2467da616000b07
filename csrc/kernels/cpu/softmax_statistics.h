#pragma once

namespace vleff {

// Of one query's logits, times log2(e): their maximum, and the sum of 2 ** (logit - maximum). Apart, these
// are more exact than the logarithm of their sum where logits are large.
struct SoftmaxStatistics {
  float maximum, sum;
};

}  // namespace vleff
