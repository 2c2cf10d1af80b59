// Angles without libm: logarithm, exponential, sine and cosine from +, -, *, / in double, good to about 1e-15,
// so that every machine rounds to the same float32. This file is compiled with contraction off.
#include <cmath>
#include <cstdint>

#include "program.h"

namespace stoker {
namespace {

double log_of(double x) {  // x = m 2^e, log m = 2 atanh((m - 1) / (m + 1))
  int e = 0;
  while (x >= 1.5) x /= 2, ++e;
  while (x < 0.75) x *= 2, --e;
  const double z = (x - 1) / (x + 1), z2 = z * z;
  double sum = 0;
  for (int k = 41; k >= 1; k -= 2) sum = sum * z2 + 1.0 / k;
  return 2 * z * sum + e * 0.693147180559945309417232;
}

double exp_of(double x) {  // e^(x / 2^10) by its series, squared ten times
  const double r = x / 1024;
  double sum = 1;
  for (int k = 12; k >= 1; --k) sum = 1 + r / k * sum;
  for (int i = 0; i < 10; ++i) sum *= sum;
  return sum;
}

void sine_cosine(double x, double* sine, double* cosine) {
  const double quadrant = std::floor(x * 0.636619772367581343 + 0.5);  // floor is exact, like + and *
  // pi/2 in two parts; quadrant < 2^21 keeps the first product exact.
  const double r = (x - quadrant * 1.5707963267341256) - quadrant * 6.077100506506192e-11;
  const double r2 = r * r;
  double s = 1, c = 1;  // Taylor series from the inside: sin r = r (1 - r2/6 (1 - r2/20 (...)))
  for (int k = 17; k >= 3; k -= 2) s = 1 - r2 / (k * (k - 1)) * s;
  for (int k = 18; k >= 2; k -= 2) c = 1 - r2 / (k * (k - 1)) * c;
  s *= r;
  switch ((int64_t)quadrant & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
  }
}

}  // namespace

std::vector<float> rope_frequencies(double base, int rotary) {
  std::vector<float> out((size_t)rotary / 2);
  const double log_base = log_of(base);
  for (size_t i = 0; i < out.size(); ++i) out[i] = (float)exp_of(-2.0 * (double)i / rotary * log_base);
  return out;
}

void rope_row(const RopeTable& table, int32_t position, float* cosine, float* sine) {
  const int half = table.rotary / 2;
  for (int i = 0; i < half; ++i) {
    const float angle = (float)position * table.frequency[(size_t)i];  // float32, as models were trained
    double s, c;
    sine_cosine(angle, &s, &c);
    const int first = table.interleaved ? 2 * i : i, second = table.interleaved ? 2 * i + 1 : i + half;
    cosine[first] = cosine[second] = (float)c;
    sine[first] = (float)-s;
    sine[second] = (float)s;
  }
}

}  // namespace stoker
