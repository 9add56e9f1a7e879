// Structs of arguments from Python's keyword arguments. A field has the same name on both sides, so none can be taken
// for another: a name that is missing, unknown or of the wrong kind is a TypeError before anything runs.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "adam_ema.h"
#include "ddpm_step.h"
#include "patch_match.h"
#include "philox.h"
#include "sample_crops.h"
#include "vote.h"

namespace sinfusion {

namespace py = pybind11;

// Reads the fields of a struct one by one, then checks that there were no others.
class Fields {
 public:
  explicit Fields(const py::kwargs& given) : given_(given) {}

  // The address of a tensor, or null for None.
  template <class T>
  void read(PyObject* name, T*& field) {
    PyObject* value = find(name);
    if (value == Py_None) {
      field = nullptr;
      return;
    }
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    if (PyLong_Check(value) || PyFloat_Check(value)) refuse(name, "a tensor or None");
    const py::object address = checked(PyObject_CallMethodNoArgs(value, data_ptr));
    field = static_cast<T*>(PyLong_AsVoidPtr(address.ptr()));
    if (!field && PyErr_Occurred()) throw py::error_already_set();
  }
  void read(PyObject* name, bool& field) {
    PyObject* value = find(name);
    if (!PyBool_Check(value)) refuse(name, "True or False");
    field = value == Py_True;
  }
  void read(PyObject* name, int64_t& field) { field = integer<long long>(name, find(name)); }
  void read(PyObject* name, int32_t& field) { field = integer<int32_t>(name, find(name)); }
  void read(PyObject* name, uint64_t& field) { field = integer<unsigned long long>(name, find(name)); }
  void read(PyObject* name, uint32_t& field) { field = integer<uint32_t>(name, find(name)); }
  void read(PyObject* name, float& field) {
    PyObject* value = find(name);
    if (!PyFloat_Check(value) && (!PyLong_Check(value) || PyBool_Check(value))) refuse(name, "a number");
    field = float(PyFloat_AsDouble(value));
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  // Frames, rows and columns.
  void read(PyObject* name, Position& field) { read_three(name, field.t, field.y, field.x); }
  void read(PyObject* name, Volume& field) { read_three(name, field.frames, field.height, field.width); }

  // Refuses names that no field has.
  void finish() const {
    if (count_ == py::len(given_)) return;
    throw py::type_error("of " + std::string(py::str(py::list(given_.attr("keys")()))) + " only " +
                         std::to_string(count_) + " are fields");
  }

 private:
  PyObject* find(PyObject* name) {
    PyObject* value = PyDict_GetItemWithError(given_.ptr(), name);
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    if (!value) throw py::type_error(std::string(py::str(name)) + " is missing");
    ++count_;
    return value;
  }
  [[noreturn]] static void refuse(PyObject* name, const char* wanted) {
    throw py::type_error(std::string(py::str(name)) + " has to be " + wanted);
  }
  static py::object checked(PyObject* made) {
    if (!made) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
  }
  template <class T>
  static T integer(PyObject* name, PyObject* value) {
    if (!PyLong_Check(value) || PyBool_Check(value)) refuse(name, "an integer");
    py::detail::make_caster<T> number;
    if (!number.load(value, false)) refuse(name, "an integer in the field's range");
    return number;
  }
  template <class T>
  void read_three(PyObject* name, T& t, T& y, T& x) {
    const py::object three = checked(PySequence_Fast(find(name), "three integers are wanted"));
    if (PySequence_Fast_GET_SIZE(three.ptr()) != 3) refuse(name, "three integers");
    PyObject** items = PySequence_Fast_ITEMS(three.ptr());
    t = integer<T>(name, items[0]), y = integer<T>(name, items[1]), x = integer<T>(name, items[2]);
  }

  const py::kwargs& given_;
  size_t count_ = 0;
};

// READ(x) reads the field x of `a` from `fields`; READ_AS("name", ...) one of another name.
#define READ_AS(name, field)                                       \
  do {                                                             \
    static PyObject* const key = PyUnicode_InternFromString(name); \
    fields.read(key, field);                                       \
  } while (false)
#define READ(field) READ_AS(#field, a.field)

inline void read_fields(Fields& fields, AdamEma& a) {
  READ(value);
  READ(exp_avg);
  READ(exp_avg_sq);
  READ(average);
  READ(copy);
  READ(gradient);
  READ(coefficients);
  READ(count);
  READ(one_minus_beta1);
  READ(beta2);
  READ(one_minus_beta2);
  READ(eps);
}

inline void read_fields(Fields& fields, DdpmStep& a) {
  READ(batch);
  READ(pixels);
  READ(x);
  READ(output);
  READ(output_bf16);
  READ(prior_mean);
  READ(coefficients);
  READ(seeds);
  READ(stream);
  READ(counter);
  READ(inputs);
  READ(inputs_bf16);
  READ(channels);
  READ(previous);
  READ(known_mask);
  READ(known_mask_shared);
  READ(known_image);
  READ(known_image_shared);
}

inline void read_fields(Fields& fields, PatchMatch& a) {
  READ_AS("query", a.query.data);
  READ_AS("query_size", a.query);
  READ_AS("key", a.key.data);
  READ_AS("key_size", a.key);
  READ(channels);
  READ(patch);
  READ(weight);
  READ(steps);
  READ(strides);
  READ(seed);
  READ(has_initial_field);
  READ(field);
  READ(scratch_field);
  READ(tried);
  READ(distances);
}

inline void read_fields(Fields& fields, SampleCrops& a) {
  READ(frames);
  READ(height);
  READ(width);
  READ(batch);
  READ(crops);
  READ(condition_frames);
  READ(coefficients);
  READ(coarse_noise);
  READ(coarse_height);
  READ(coarse_width);
  READ(seeds);
  READ(step);
  READ(noise_stream);
  READ(white_noise_stream);
  READ(conditions);
  READ(changes);
  READ(crop_height);
  READ(crop_width);
  READ(input);
  READ(bf16);
  READ(target);
}

inline void read_fields(Fields& fields, Vote& a) {
  READ(value);
  READ(frames);
  READ(height);
  READ(width);
  READ(bf16);
  READ(channels);
  READ(patch);
  READ(middle);
  READ(count);
  READ(field);
  READ(mean);
  READ(weight);
  READ(out);
}

// Random numbers, and where they go.
template <class T>
struct PhiloxOutput : PhiloxRows {
  T* out;  // (batch, count)
};
template <class T>
void read_fields(Fields& fields, PhiloxOutput<T>& a) {
  READ(seeds);
  READ(batch);
  READ(stream);
  READ_AS("step", a.at.value);
  READ_AS("step_address", a.at.address);
  READ(count);
  READ(out);
}

template <class Arguments>
Arguments arguments_from(const py::kwargs& given) {
  Fields fields(given);
  Arguments a{};
  read_fields(fields, a);
  fields.finish();
  return a;
}

}  // namespace sinfusion
